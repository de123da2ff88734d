"""Learned deconvolution, which may start from bilinear interpolation."""

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.ops import deconv2d
from fastseg.ops.recording import is_recording


def bilinear_kernel(height, width):
    """(height, width) weights in float32 with which a deconvolution of stride s = (k + 1) // 2 interpolates.

    Input i gives to output o the weight w(o - s i), w(x) = max(0, 1 - |x - (k - 1) / 2| / s), rows and columns alike:
    multiples of 1 / (4 s^2), so exact where s is a power of two.
    """
    rows, columns = (
        1 - (torch.arange(k, dtype=torch.float64) - (k - 1) / 2).abs() / ((k + 1) // 2) for k in (height, width)
    )
    return (rows[:, None] * columns).float()


@torch.no_grad()
def fill_bilinear_(weight):
    """A deconvolution's weight (C, C, k, k) or (C, 1, k, k): every channel interpolates, and goes to no other."""
    kernel = bilinear_kernel(*weight.shape[2:]).to(weight)
    if weight.shape[1] == 1:
        return weight.copy_(kernel.expand_as(weight))
    weight.zero_().diagonal().copy_(kernel[..., None])
    return weight


class Deconv2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d: (N, C, h, w) -> (N, O, H, W), with the same arguments and state dict.

    init    "bilinear": the weight starts as bilinear interpolation, channel by channel, and the bias as 0; the stride
            should be (k + 1) // 2. None: as in nn.ConvTranspose2d
    freeze  the weight gets no gradient; FCNs do so to the last layer (arXiv 1411.4038, section 4.3)

    A weight that is zero between channels is not multiplied there; on a GPU, only if it is frozen.
    """

    init = None  # of modules that became Deconv2d by a change of class

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        init=None,
        freeze=False,
    ):
        how = stride, padding, output_padding, groups, bias, dilation, padding_mode, device, dtype
        super().__init__(in_channels, out_channels, kernel_size, *how)
        if init not in (None, "bilinear"):
            raise ValueError(f'Deconv2d: init must be "bilinear" or None, got {init!r}')
        if init == "bilinear":
            self.init = init
            self.reset_parameters()
        self.weight.requires_grad_(not freeze)

    def reset_parameters(self):
        super().reset_parameters()
        if self.init != "bilinear":
            return
        if self.in_channels != self.out_channels or self.groups not in (1, self.in_channels):
            wanted = "as many channels out as in, in one group or in as many"
            got = f"{self.in_channels} to {self.out_channels} in {self.groups} groups"
            raise ValueError(f"Deconv2d: bilinear interpolation needs {wanted}, got {got}")
        fill_bilinear_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input, output_size=None, *, crop=None, skip=None):
        """`output_size` as in nn.ConvTranspose2d; `crop` and `skip` as in fastseg.ops.deconv2d."""
        how = self.stride, self.padding, self.kernel_size, 2, self.dilation
        extra = self._output_padding(input, output_size, *how)
        how = self.stride, self.padding, extra, self.groups, self.dilation
        if not is_recording(input):
            return deconv2d(input, self.weight, self.bias, *how, crop=crop, skip=skip)
        output = F.conv_transpose2d(input, self.weight, self.bias, *how)
        if crop is not None:
            top, left, height, width = crop
            output = output[..., top : top + height, left : left + width]
        return output if skip is None else output + skip
