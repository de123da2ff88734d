"""Pyramid pooling: a network's features and their means over whole regions, in one convolution.

    priors = [ReLU(BatchNorm(conv1x1(cells))) for cells in pyramid_pool(x)]      PyramidPriors
    conv2d(cat([x, priors upsampled to the size of x]))                          PyramidConv2d
    ReLU(BatchNorm(PyramidConv2d(x, PyramidPriors(x))))                          PyramidPooling

A network that keeps the names of published weights holds the first two under names of its own: in the authors' PSPNet,
`ppm` is PyramidPriors and `cls.0` is PyramidConv2d.
"""

import torch
from torch import nn

from fastseg.ops import pyramid_conv2d, pyramid_pool

torch.fx.wrap("pyramid_conv2d")  # calls in graphs, as those of torch.nn.functional are
torch.fx.wrap("pyramid_pool")


class PyramidPriors(nn.Module):
    """(N, C, H, W) -> a list with (N, reduction, h, w) for every bin, an int (h = w) or a pair (h, w).

    reduction  channels of every prior; None: C // number of bins
    mode       "avg" or "max", of the pooling

    `prior_channels` are those of all priors together. The names of parameters are those of PSPNet's authors: of bin i
    features.i.1 is the convolution and features.i.2 the BatchNorm. In training a bin of one cell needs more than one
    image in the batch: a ValueError says so.
    """

    def __init__(self, in_channels, bins=(1, 2, 3, 6), reduction=None, mode="avg"):
        super().__init__()
        self.bins, self.mode = tuple(bins), mode
        reduction = in_channels // len(self.bins) if reduction is None else reduction
        self.prior_channels = len(self.bins) * reduction  # of all priors
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Identity(),  # in the place of the pooling, which is done for all bins at once
                nn.Conv2d(in_channels, reduction, 1, bias=False),
                nn.BatchNorm2d(reduction),
                nn.ReLU(inplace=True),
            )
            for _ in self.bins
        )

    def forward(self, x):
        pooled = pyramid_pool(x, self.bins, self.mode)
        return [self._prior(i, branch, pooled[i]) for i, branch in enumerate(self.features)]

    def _prior(self, i, branch, cells):
        try:
            return branch(cells)
        except ValueError as error:
            if cells[:, 0].numel() != 1:
                raise
            raise ValueError(
                f"{type(self).__name__}: the BatchNorm of bin {self.bins[i]!r} is in training and got one number per "
                "channel, of one image and one cell, which has no variance. Wanted two images or more; or BatchNorm in "
                f"eval mode, with the statistics it has (features[{i}].eval()); or, with more images in other "
                "processes, nn.SyncBatchNorm.convert_sync_batchnorm(model)"
            ) from error

    def extra_repr(self):
        return f"bins={self.bins}, mode={self.mode!r}"


class PyramidConv2d(nn.Conv2d):
    """nn.Conv2d of (N, C, H, W) and priors (N, R, h, w) that are upsampled to H x W: (N, out_channels, H', W').

    in_channels    C and all priors' R together, in this order
    align_corners  of the upsampling, as in F.interpolate

    Other arguments and the state dict are nn.Conv2d's; stride, dilation and groups must be 1, and padding zeros.
    """

    def __init__(self, *arguments, align_corners=False, **keywords):
        super().__init__(*arguments, **keywords)
        self.align_corners = align_corners
        how = {name: getattr(self, name) for name in ("stride", "dilation", "groups", "padding_mode")}
        if how != {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}:
            got = ", ".join(f"{name}={value!r}" for name, value in how.items())
            raise ValueError(
                f'PyramidConv2d: wanted stride, dilation and groups 1, and padding_mode "zeros", got {got}'
            )

    def forward(self, input, priors):
        return pyramid_conv2d(input, priors, self.weight, self.bias, self.padding, self.align_corners)

    def extra_repr(self):
        return f"{super().extra_repr()}, align_corners={self.align_corners}"


class PyramidPooling(PyramidPriors):
    """(N, in_channels, H, W) -> (N, out_channels, H, W): priors, and a convolution, BatchNorm and ReLU of all.

    bins, reduction, mode  of PyramidPriors; more than one image in training, as there
    kernel_size            of the last convolution, odd
    align_corners          of the upsampling, as in F.interpolate; the authors of PSPNet have True
    """

    def __init__(
        self,
        in_channels,
        out_channels=512,
        bins=(1, 2, 3, 6),
        reduction=None,
        kernel_size=3,
        align_corners=False,
        mode="avg",
    ):
        super().__init__(in_channels, bins, reduction, mode)
        if kernel_size % 2 != 1:
            raise ValueError(f"PyramidPooling: kernel_size must be odd, to keep H and W, got {kernel_size}")
        how = {"padding": kernel_size // 2, "bias": False, "align_corners": align_corners}
        self.conv = PyramidConv2d(in_channels + self.prior_channels, out_channels, kernel_size, **how)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x, super().forward(x))))
