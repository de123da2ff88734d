"""FCN: fully convolutional networks (arXiv 1411.4038), in torchvision's form: dilated ResNet, 3x3 head.

Names of parameters are torchvision's, whose weights load as they are.
"""

import torch
from torch import nn

from fastseg.models.resnet import AUX_CHANNELS, BLOCKS, OUT_CHANNELS, ResNet
from fastseg.models.segmenter import Segmenter
from fastseg.nn import AtrousConv2d
from fastseg.nn.conv_bn import ConvBNSequential

HEADS = ("torchvision", "mmseg")
WIDTH = 512  # of the hidden layers


def _conv_bn_relu(channels, out_channels, dilation=1):
    convolution = AtrousConv2d if dilation > 1 else nn.Conv2d
    return (
        convolution(channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class FCNHead(ConvBNSequential):
    """Features (N, channels, h, w) -> logits (N, num_classes, h, w). Also every network's auxiliary head."""

    def __init__(self, channels, num_classes, dropout=nn.Dropout, dilation=1):
        super().__init__(
            *_conv_bn_relu(channels, channels // 4, dilation),
            dropout(0.1),
            nn.Conv2d(channels // 4, num_classes, 1),
        )


class Beside(ConvBNSequential):
    """What its layers make of x, after x: (N, C, h, w) -> (N, C + C', h, w)."""

    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class DeepFCNHead(ConvBNSequential):
    """mmsegmentation's: two convolutions, and one that sees the features too."""

    def __init__(self, channels, num_classes, dilation=1):
        super().__init__(
            Beside(*_conv_bn_relu(channels, WIDTH, dilation), *_conv_bn_relu(WIDTH, WIDTH, dilation)),
            *_conv_bn_relu(channels + WIDTH, WIDTH),
            nn.Dropout2d(0.1),
            nn.Conv2d(WIDTH, num_classes, 1),
        )


class FCN(Segmenter):
    """FCN on a ResNet, for training and labelling as in `Network`.

    blocks         of the ResNet's four stages
    num_classes    C
    aux_loss       whether there is an auxiliary head, on the third stage's features
    output_stride  8, 16 or 32: from the image to the features
    head           "torchvision": one hidden layer (FCNHead); "mmseg": three (DeepFCNHead)
    head_dilation  of the hidden layers of both heads, but for the one that sees the features too: 6 in mmseg's FCN-D6
    stem           widths of the convolutions before the stages: one 7x7, or three 3x3
    align_corners  of the interpolation of logits to the image. Losses on small logits want the same

    Defaults are torchvision's.
    """

    family = "fcn"

    def __init__(
        self,
        blocks,
        *,
        num_classes=21,
        aux_loss=True,
        output_stride=8,
        head="torchvision",
        head_dilation=1,
        stem=(64,),
        align_corners=False,
    ):
        if head not in HEADS:
            raise ValueError(f"FCN: head must be one of {', '.join(HEADS)}, got {head!r}")
        dilated = {"dilation": head_dilation}
        classifier = (DeepFCNHead if head == "mmseg" else FCNHead)(OUT_CHANNELS, num_classes, **dilated)
        aux_classifier = FCNHead(AUX_CHANNELS, num_classes, **dilated) if aux_loss else None
        super().__init__(ResNet(blocks, stem=stem, output_stride=output_stride), classifier, aux_classifier)
        self.align_corners = align_corners
        self.form = {"output_stride": output_stride, "head_dilation": head_dilation, "align_corners": align_corners}


def fcn_resnet50(**keywords):
    """FCN on a ResNet-50; keywords are those of FCN. By default it takes torchvision's weights, which include "aux"."""
    return FCN(BLOCKS[50], **keywords)


def fcn_resnet101(**keywords):
    """FCN on a ResNet-101; keywords are those of FCN. By default it takes torchvision's weights, which include
    "aux"."""
    return FCN(BLOCKS[101], **keywords)
