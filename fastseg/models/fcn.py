"""FCN: fully convolutional networks (arXiv 1411.4038), in torchvision's form: dilated ResNet, 3x3 head."""

from torch import nn

from fastseg.models.resnet import AUX_CHANNELS, OUT_CHANNELS, resnet50, resnet101
from fastseg.models.segmenter import Segmenter
from fastseg.nn.conv_bn import ConvBNSequential


class FCNHead(ConvBNSequential):
    """Features (N, channels, h, w) -> logits (N, num_classes, h, w). Also every network's auxiliary head."""

    def __init__(self, channels, num_classes, dropout=nn.Dropout):
        super().__init__(
            nn.Conv2d(channels, channels // 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(inplace=True),
            dropout(0.1),
            nn.Conv2d(channels // 4, num_classes, 1),
        )


def _fcn(backbone, num_classes, aux_loss):
    aux_classifier = FCNHead(AUX_CHANNELS, num_classes) if aux_loss else None
    return Segmenter(backbone, FCNHead(OUT_CHANNELS, num_classes), aux_classifier)


def fcn_resnet50(*, num_classes=21, aux_loss=True):
    """FCN on a ResNet-50, output stride 8. Takes torchvision's weights, which include "aux"."""
    return _fcn(resnet50(), num_classes, aux_loss)


def fcn_resnet101(*, num_classes=21, aux_loss=True):
    """FCN on a ResNet-101, output stride 8. Takes torchvision's weights, which include "aux"."""
    return _fcn(resnet101(), num_classes, aux_loss)
