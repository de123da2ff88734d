"""DeepLabv3: atrous convolutions at several rates side by side (arXiv 1706.05587)."""

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.models.conv_bn import ConvBNSequential
from fastseg.models.fcn import FCNHead
from fastseg.models.resnet import AUX_CHANNELS, OUT_CHANNELS, resnet50, resnet101
from fastseg.models.segmenter import Segmenter

RATES = (12, 24, 36)  # for output stride 8; the paper halves them for 16


def _conv_bn_relu(channels, out_channels, **convolution):
    return (
        nn.Conv2d(channels, out_channels, bias=False, **convolution),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N, channels, h, w) -> (N, out_channels, h, w).

    A 1x1 convolution, a 3x3 one at each rate and the image's mean side by side, and a 1x1 one over them all.
    In training the mean's BatchNorm needs more than one image in the batch, as in torchvision.
    """

    def __init__(self, channels, rates=RATES, out_channels=256):
        super().__init__()
        rows = [_conv_bn_relu(channels, out_channels, kernel_size=1)]
        rows += [_conv_bn_relu(channels, out_channels, kernel_size=3, padding=rate, dilation=rate) for rate in rates]
        rows += [(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(channels, out_channels, kernel_size=1))]
        self.convs = nn.ModuleList(ConvBNSequential(*row) for row in rows)
        self.project = ConvBNSequential(
            *_conv_bn_relu(len(rows) * out_channels, out_channels, kernel_size=1), nn.Dropout(0.5)
        )

    def forward(self, x):
        *maps, mean = [conv(x) for conv in self.convs]
        maps.append(F.interpolate(mean, x.shape[-2:], mode="bilinear", align_corners=False))  # from 1x1: a copy
        together = torch.cat(maps, 1)
        del maps, mean  # as large as what is left to hold
        return self.project(together)


class DeepLabHead(ConvBNSequential):
    """Features (N, channels, h, w) -> logits (N, num_classes, h, w)."""

    def __init__(self, channels, num_classes, rates=RATES):
        super().__init__(
            ASPP(channels, rates),
            *_conv_bn_relu(256, 256, kernel_size=3, padding=1),
            nn.Conv2d(256, num_classes, 1),
        )


def _deeplabv3(backbone, num_classes, aux_loss):
    aux_classifier = FCNHead(AUX_CHANNELS, num_classes) if aux_loss else None
    return Segmenter(backbone, DeepLabHead(OUT_CHANNELS, num_classes), aux_classifier)


def deeplabv3_resnet50(*, num_classes=21, aux_loss=True):
    """DeepLabv3 on a ResNet-50, output stride 8. Takes torchvision's weights, which include "aux"."""
    return _deeplabv3(resnet50(), num_classes, aux_loss)


def deeplabv3_resnet101(*, num_classes=21, aux_loss=True):
    """DeepLabv3 on a ResNet-101, output stride 8. Takes torchvision's weights, which include "aux"."""
    return _deeplabv3(resnet101(), num_classes, aux_loss)
