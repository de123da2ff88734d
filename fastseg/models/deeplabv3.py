"""DeepLabv3: atrous convolutions side by side or in cascade (arXiv 1706.05587).

Names of parameters are torchvision's, whose weights load as they are.
"""

from torch import nn

from fastseg.models.fcn import FCNHead
from fastseg.models.resnet import AUX_CHANNELS, BLOCKS, OUT_CHANNELS, OUTPUT_STRIDES, ResNet
from fastseg.models.segmenter import Segmenter
from fastseg.nn import ASPP
from fastseg.nn.conv_bn import ConvBNSequential

RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}  # by output stride
FORMS = ("parallel", "cascade")
HEADS = ("torchvision", "paper", "mmseg")
CASCADE = 3  # stages after the fourth: block5 to block7


class DeepLabHead(ConvBNSequential):
    """Features (N, channels, h, w) -> logits (N, num_classes, h, w), by an ASPP of these rates and a 1x1 convolution.

    head  "torchvision": a 3x3 convolution of 256 channels in between; dropout of 0.5 after the ASPP
          "paper": nothing in between; dropout of 0.1, as in the authors' code
          "mmseg": nothing in between, but the ASPP has 512 channels, a 3x3 convolution for a projection, and the
          image's mean first; dropout of 0.1 of whole channels
    """

    def __init__(self, channels, num_classes, rates=RATES[8], head="torchvision", image_pooling=True):
        if head not in HEADS:
            raise ValueError(f"DeepLabHead: head must be one of {', '.join(HEADS)}, got {head!r}")
        if head == "mmseg":
            how = {"kernel_size": 3, "pool_first": True, "dropout": 0}
            layers = ASPP(channels, rates, 512, image_pooling=image_pooling, **how), nn.Dropout2d(0.1)
        elif head == "paper":
            layers = (ASPP(channels, rates, image_pooling=image_pooling, dropout=0.1),)
        else:
            between = nn.Conv2d(256, 256, 3, padding=1, bias=False)
            layers = (
                ASPP(channels, rates, image_pooling=image_pooling),
                between,
                nn.BatchNorm2d(256),
                nn.ReLU(inplace=True),
            )
        super().__init__(*layers, nn.Conv2d(512 if head == "mmseg" else 256, num_classes, 1))


class DeepLabV3(Segmenter):
    """DeepLabv3 on a ResNet, for training and labelling as in `Network`.

    blocks         of the ResNet's four stages
    num_classes    C
    aux_loss       whether there is an auxiliary head, on the third stage's features
    form           "parallel": ASPP on the fourth stage; "cascade": three more stages, of doubling dilations, and logits
                   right after the last (paper, section 3.2)
    output_stride  8, 16 or 32: from the image to the features; see `set_output_stride`
    rates          of the ASPP, at this output stride; None: 6, 12, 18 at 16, and accordingly at others
    head           "torchvision", "paper" or "mmseg": see DeepLabHead
    image_pooling  whether the image's mean is one of the ASPP's branches
    contracted     whether a dilated stage's first block keeps the dilation of the stage before, as in torchvision
    multi_grid     factors of the dilations of a stage's three blocks from the fourth stage on, such as (1, 2, 4)
    absolute_grid  multi_grid holds the dilations themselves, as in mmseg
    stem           widths of the convolutions before the stages: one 7x7, or three 3x3
    stride_first   a block's stride is in its first convolution, as in Caffe
    ceil_mode      of the pooling before the stages, as in Caffe
    align_corners  of the interpolation of logits to the image. Losses on small logits want the same

    Defaults are torchvision's. The paper's best network is head="paper", multi_grid=(1, 2, 4), contracted=False,
    trained at output stride 16; in cascade it is multi_grid=(1, 2, 1).
    """

    family = "deeplabv3"

    def __init__(
        self,
        blocks,
        *,
        num_classes=21,
        aux_loss=True,
        form="parallel",
        output_stride=8,
        rates=None,
        head="torchvision",
        image_pooling=True,
        contracted=True,
        multi_grid=None,
        absolute_grid=False,
        stem=(64,),
        stride_first=False,
        ceil_mode=False,
        align_corners=False,
    ):
        if form not in FORMS:
            raise ValueError(f"DeepLabV3: form must be one of {', '.join(FORMS)}, got {form!r}")
        grid = {"contracted": contracted, "multi_grid": multi_grid, "absolute_grid": absolute_grid}
        grid |= {"output_stride": output_stride, "stride_first": stride_first, "ceil_mode": ceil_mode}
        cascade = CASCADE if form == "cascade" else 0
        backbone = ResNet(blocks, cascade, stem=stem, **grid)
        if form == "cascade":
            classifier = nn.Sequential(nn.Conv2d(OUT_CHANNELS, num_classes, 1))
        else:
            rates = RATES[output_stride] if rates is None else rates
            classifier = DeepLabHead(OUT_CHANNELS, num_classes, rates, head, image_pooling)
        super().__init__(backbone, classifier, FCNHead(AUX_CHANNELS, num_classes) if aux_loss else None)
        self.output_stride, self.align_corners = output_stride, align_corners
        self.form = {**grid, "image_pooling": image_pooling, "align_corners": align_corners}
        self.form |= {"rates": classifier[0].rates if form == "parallel" else None}

    def set_output_stride(self, output_stride):
        """Change a network that is built, and return it: strides and dilations of the ResNet, and the ASPP's rates,
        which double from 16 to 8. Parameters stay as they are: train at 16, label at 8 (paper, table 6).

        Raises ValueError for another output stride than 8, 16 and 32, and for rates that would not be whole.
        """
        if output_stride not in OUTPUT_STRIDES:
            wanted = ", ".join(map(str, OUTPUT_STRIDES))
            raise ValueError(f"set_output_stride: output_stride must be one of {wanted}, got {output_stride!r}")
        pyramid = self.classifier[0]
        if isinstance(pyramid, ASPP):
            scaled = [divmod(rate * self.output_stride, output_stride) for rate in pyramid.rates]
            if any(rest for _, rest in scaled):
                change = f"{self.output_stride} to {output_stride}"
                raise ValueError(f"set_output_stride: {change} needs rates that stay whole, got {pyramid.rates}")
            pyramid.set_rates(rate for rate, _ in scaled)
            self.form["rates"] = pyramid.rates
        self.backbone.set_output_stride(output_stride)
        self.output_stride = self.form["output_stride"] = output_stride
        return self


def deeplabv3_resnet50(**keywords):
    """DeepLabv3 on a ResNet-50; keywords are those of DeepLabV3. By default it takes torchvision's weights, which
    include "aux"."""
    return DeepLabV3(BLOCKS[50], **keywords)


def deeplabv3_resnet101(**keywords):
    """DeepLabv3 on a ResNet-101; keywords are those of DeepLabV3. By default it takes torchvision's weights, which
    include "aux"."""
    return DeepLabV3(BLOCKS[101], **keywords)
