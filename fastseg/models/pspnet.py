"""PSPNet: a pyramid of pooled features beside the features (arXiv 1612.01105).

Names of parameters are those of the authors' PyTorch code, whose checkpoints load as they are.
"""

from collections import OrderedDict

from torch import nn

from fastseg.models.fcn import FCNHead
from fastseg.models.resnet import AUX_CHANNELS, BLOCKS, OUT_CHANNELS, dilate, initialise, stages, stem_of
from fastseg.models.segmenter import Network
from fastseg.nn import PyramidConv2d, PyramidPriors

STEM = (64, 64, 128)
WIDTH = 512  # of the last hidden layer


class PyramidHead(nn.Sequential):
    """Features and priors, of `channels` together -> logits (N, num_classes, h, w)."""

    def __init__(self, channels, num_classes, align_corners):
        super().__init__(
            PyramidConv2d(channels, WIDTH, 3, padding=1, bias=False, align_corners=align_corners),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(WIDTH, num_classes, 1),
        )

    def forward(self, x, priors):
        convolution, *layers = self
        x = convolution(x, priors)
        for layer in layers:
            x = layer(x)
        return x


class PSPNet(Network):
    """PSPNet on a ResNet, for training and labelling as in `Network`.

    blocks         of the ResNet's four stages
    num_classes    C
    aux_loss       whether there is an auxiliary head, on the third stage's features
    output_stride  8, 16 or 32: from the image to the features
    bins           rows and columns of the pyramid's levels: ints or pairs
    mode           "avg" or "max": how a cell is pooled
    align_corners  of both interpolations: the pyramid's to the features, and the logits' to the image. Losses on small
                   logits want the same
    stem           widths of the 3x3 convolutions before the stages; one width is that of a plain ResNet's 7x7 one
    contracted     whether a dilated stage's first block keeps the dilation of the stage before, as in torchvision

    Defaults are the authors'. Others are what other libraries' weights were trained with.
    """

    family = "pspnet"

    def __init__(
        self,
        blocks,
        *,
        num_classes=21,
        aux_loss=True,
        output_stride=8,
        bins=(1, 2, 3, 6),
        mode="avg",
        align_corners=True,
        stem=STEM,
        contracted=False,
    ):
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        self.layer0 = stem_of(stem)
        four = self.layer1, self.layer2, self.layer3, self.layer4 = stages(stem[-1], blocks)
        dilate(four, output_stride, contracted)
        initialise(self)
        self.ppm = PyramidPriors(OUT_CHANNELS, bins, mode=mode)
        self.cls = PyramidHead(OUT_CHANNELS + self.ppm.prior_channels, num_classes, align_corners)
        self.aux = FCNHead(AUX_CHANNELS, num_classes, nn.Dropout2d) if aux_loss else None
        self.form = {"output_stride": output_stride, "bins": tuple(bins), "mode": mode, "align_corners": align_corners}
        self.form |= {"contracted": contracted}

    def heads(self, x, aux):
        features = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        x = self.layer4(features)
        logits = OrderedDict(out=self.cls(x, self.ppm(x)))
        if aux and self.aux is not None:
            logits["aux"] = self.aux(features)
        return logits


def pspnet_resnet50(**keywords):
    """PSPNet on a ResNet-50; keywords are those of PSPNet, such as num_classes=21 and aux_loss=True."""
    return PSPNet(BLOCKS[50], **keywords)


def pspnet_resnet101(**keywords):
    """PSPNet on a ResNet-101; keywords are those of PSPNet."""
    return PSPNet(BLOCKS[101], **keywords)


def pspnet_resnet152(**keywords):
    """PSPNet on a ResNet-152; keywords are those of PSPNet."""
    return PSPNet(BLOCKS[152], **keywords)


def pspnet_resnet269(**keywords):
    """PSPNet on a ResNet-269, the paper's best; keywords are those of PSPNet."""
    return PSPNet(BLOCKS[269], **keywords)
