"""PyTorch's own modules, by which models of any library gain."""

import torch
from torch import Tensor, nn

from fastseg.nn import AtrousConv2d, Deconv2d
from fastseg.ops import upsample_bilinear
from fastseg.patches.registry import Patch, qualified, register


@register(qualified(nn.Conv2d))
class DilatedConv2d(Patch):
    """Dilated convolutions as fastseg.nn.AtrousConv2d. In others there is no padding to gain from."""

    ops = ("atrous_conv2d",)
    base = AtrousConv2d

    @staticmethod
    def concerns(module):
        sides = zip(module.dilation, module.kernel_size, strict=True)
        return any(rate > 1 and taps > 1 for rate, taps in sides)

    @staticmethod
    def why_not(module):
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r}"
        return None if module.groups == 1 else f"{module.groups} groups"

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self.fastseg_call(input)
        return self._conv_forward(input, self.weight, self.bias)

    fused = AtrousConv2d.forward


@register(qualified(nn.ConvTranspose2d))
class Deconvolution(Patch):
    """Transposed convolutions as fastseg.nn.Deconv2d."""

    ops = ("deconv2d",)
    base = Deconv2d

    @staticmethod
    def why_not(module):
        return None if module.padding_mode == "zeros" else f"padding_mode {module.padding_mode!r}"

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not torch.jit.is_scripting():
            return self.fastseg_call(input, output_size)
        return self.fastseg_stock(input, output_size)

    fused = Deconv2d.forward


@register(qualified(nn.Upsample), qualified(nn.UpsamplingBilinear2d))
class BilinearUpsampling(Patch):
    """Bilinear upsampling by whole factors, or to a size."""

    ops = ("upsample_bilinear",)

    @staticmethod
    def concerns(module):
        return module.mode == "bilinear"

    @staticmethod
    def why_not(module):
        factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,)
        if module.size is None and not all(float(factor).is_integer() for factor in factors):
            return f"scale_factor {module.scale_factor} is not whole"
        return None

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self.fastseg_call(input)
        return self.fastseg_stock(input)

    def fused(self, input):
        size = self.size
        if size is None:
            pair = self.scale_factor if isinstance(self.scale_factor, tuple) else (self.scale_factor,) * 2
            size = [side * int(factor) for side, factor in zip(input.shape[-2:], pair, strict=True)]
        return upsample_bilinear(input, size, bool(self.align_corners))
