"""Atrous spatial pyramid pooling (arXiv 1706.05587, section 3.3).

    maps = [ReLU(BatchNorm(conv(x))) for a 1x1 convolution and a 3x3 one at each rate]   one atrous_pyramid in eval mode
    mean = ReLU(BatchNorm(conv1x1(mean of the image)))                                   (N, out_channels, 1, 1)
    ReLU(BatchNorm(conv(cat([*maps, mean everywhere]))))                                 one pyramid_conv2d

A mean that is the same everywhere adds a bias per image to the last convolution, but for the border of one that is
larger than 1x1: it is neither spread nor concatenated.
"""

import numbers

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.nn.atrous import AtrousConv2d
from fastseg.nn.conv_bn import ConvBNSequential
from fastseg.nn.joined import atrous_maps, joined, why_not_joining
from fastseg.nn.watched import is_plain
from fastseg.ops.recording import is_recording

RATES = (12, 24, 36)  # for output stride 8; the paper halves them for 16


def _conv_bn_relu(conv):
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)


class ASPP(nn.Module):
    """(N, channels, H, W) -> (N, out_channels, H, W): convolutions at several rates and the image's mean, and a
    convolution, BatchNorm, ReLU and dropout of them all.

    rates          of the 3x3 convolutions, beside which there is always a 1x1 one
    out_channels   of every branch, and of the result
    kernel_size    of the last convolution, odd: 1 in the paper and in torchvision, 3 in mmseg
    image_pooling  whether the image's mean is one of the branches
    pool_first     whether the last convolution's weight begins with the mean's channels, as in mmseg, or ends with them
    dropout        probability, after the last ReLU

    Names of parameters are torchvision's, whose weights load as they are: of branch i convs.i.0 is the convolution and
    convs.i.1 the BatchNorm; of the mean, which comes last whatever pool_first says, convs.i.1 and convs.i.2; of the
    last convolution project.0 and project.1. In training the mean needs more than one image in the batch: a ValueError
    says so.
    """

    def __init__(
        self,
        channels,
        rates=RATES,
        out_channels=256,
        *,
        kernel_size=1,
        image_pooling=True,
        pool_first=False,
        dropout=0.5,
    ):
        super().__init__()
        if kernel_size % 2 != 1:
            raise ValueError(f"ASPP: kernel_size must be odd, to keep H and W, got {kernel_size}")
        self.image_pooling, self.pool_first = image_pooling, pool_first
        one = nn.Conv2d(channels, out_channels, 1, bias=False)
        atrous = [AtrousConv2d(channels, out_channels, 3, padding=r, dilation=r, bias=False) for r in _checked(rates)]
        rows = [_conv_bn_relu(conv) for conv in (one, *atrous)]
        if image_pooling:
            rows.append(
                (nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(nn.Conv2d(channels, out_channels, 1, bias=False))),
            )
        self.convs = nn.ModuleList(ConvBNSequential(*row) for row in rows)
        how = {"padding": kernel_size // 2, "bias": False}
        last = nn.Conv2d(len(rows) * out_channels, out_channels, kernel_size, **how)
        self.project = ConvBNSequential(*_conv_bn_relu(last), nn.Dropout(dropout))

    @property
    def branches(self):
        """The branches of convolutions: the 1x1 one and one for each rate."""
        return list(self.convs)[: -1 if self.image_pooling else None]

    @property
    def rates(self):
        return tuple(branch[0].dilation[0] for branch in self.branches[1:])

    def set_rates(self, rates):
        """Change the rates, as many as there are; parameters stay as they are."""
        rates = _checked(rates)
        if len(rates) != len(self.rates):
            raise ValueError(f"ASPP: rates must be {len(self.rates)} in place of {self.rates}, got {rates}")
        for branch, rate in zip(self.branches[1:], rates, strict=True):
            branch[0].set_rate(rate)

    def forward(self, x):
        maps = self._maps(x)
        if not self.image_pooling:
            return self.project(torch.cat(maps, 1))
        mean = self._mean(x)
        if self._may_add_mean(x):
            conv, *layers = self.project
            x = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
            return joined(x, [mean], conv, layers, align_corners=False, priors_first=self.pool_first)
        mean = F.interpolate(mean, x.shape[-2:], mode="bilinear", align_corners=False)  # from 1x1: a copy
        together = torch.cat([mean, *maps] if self.pool_first else [*maps, mean], 1)
        del maps, mean  # as large as what is left to hold
        return self.project(together)

    def _maps(self, x):
        """The results of the branches, one by one or all in one."""
        rows = [tuple(branch) if is_plain(branch, (ConvBNSequential,)) else None for branch in self.branches]
        maps = None if is_recording(x) else atrous_maps(x, rows)
        return [branch(x) for branch in self.branches] if maps is None else [maps]

    def _mean(self, x):
        branch = self.convs[-1]
        try:
            return branch(x)
        except ValueError as error:
            if not self.training or x.shape[0] != 1:
                raise
            raise ValueError(
                f"{type(self).__name__}: the BatchNorm of the image's mean is in training and got one number per "
                "channel, of one image, which has no variance. Wanted two images or more; or BatchNorm in eval mode, "
                f"with the statistics it has (convs[{len(self.convs) - 1}].eval(), or fastseg.freeze_bn(model)); or, "
                "with more images in other processes, nn.SyncBatchNorm.convert_sync_batchnorm(model); or "
                "image_pooling=False"
            ) from error

    def _may_add_mean(self, x):
        """Whether the last convolution may be computed without its module being called."""
        if is_recording(x) or not is_plain(self.project, (ConvBNSequential,)):
            return False
        return why_not_joining("project.0", self.project[0]) is None

    def extra_repr(self):
        return f"rates={self.rates}, image_pooling={self.image_pooling}, pool_first={self.pool_first}"


def _checked(rates):
    rates = tuple(rates)
    if not all(isinstance(rate, numbers.Integral) and rate >= 1 for rate in rates):
        raise ValueError(f"ASPP: rates must be ints from 1 on, got {rates}")
    return tuple(map(int, rates))
