"""GoogLeNet (arXiv 1409.4842) in two forms and the FCNs on it, without the mean over the image as in the FCN paper.

caffe        BVLC's: normalisation across channels, 5x5 convolutions, biases; "/" in its names is "." here
torchvision  batch normalisation, 3x3 convolutions where the paper has 5x5, a fourth pooling of 2x2
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.models.classifiers import Classifier, check_source
from fastseg.models.preprocess import CAFFE, SIGNED
from fastseg.models.skip_fcn import SkipFCN
from fastseg.nn.conv_bn import ConvBNSequential

# name: channels of 1x1; 3x3 and its reduction; 5x5 and its reduction; the projection of pooling
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# Four poolings of 3x3 take a smaller image to nothing; with the last of 2x2 it may be half of that.
SMALLEST = {"caffe": 31, "torchvision": 15}


class CaffeInception(nn.Module):
    """(N, channels, h, w) -> (N, sum of the branches' channels, h, w)."""

    def __init__(self, channels, one, reduce3, three, reduce5, five, project):
        super().__init__()
        self.add_module("1x1", nn.Conv2d(channels, one, 1))
        self.add_module("3x3_reduce", nn.Conv2d(channels, reduce3, 1))
        self.add_module("3x3", nn.Conv2d(reduce3, three, 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(channels, reduce5, 1))
        self.add_module("5x5", nn.Conv2d(reduce5, five, 5, padding=2))
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.pool_proj = nn.Conv2d(channels, project, 1)

    def forward(self, x):
        def run(value, *names):
            for name in names:
                value = F.relu(getattr(self, name)(value), inplace=True)
            return value

        branches = (
            run(x, "1x1"),
            run(x, "3x3_reduce", "3x3"),
            run(x, "5x5_reduce", "5x5"),
            run(self.pool(x), "pool_proj"),
        )
        return torch.cat(branches, 1)


def conv_bn_relu(channels, out_channels, kernel, **options):
    """torchvision's unit and its names."""
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False, **options)
    return ConvBNSequential(
        OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=0.001), relu=nn.ReLU(inplace=True))
    )


class Inception(nn.Module):
    """(N, channels, h, w) -> (N, sum of the branches' channels, h, w)."""

    def __init__(self, channels, one, reduce3, three, reduce5, five, project):
        super().__init__()
        self.branch1 = conv_bn_relu(channels, one, 1)
        self.branch2 = nn.Sequential(conv_bn_relu(channels, reduce3, 1), conv_bn_relu(reduce3, three, 3))
        self.branch3 = nn.Sequential(conv_bn_relu(channels, reduce5, 1), conv_bn_relu(reduce5, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_bn_relu(channels, project, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet(source="caffe"):
    check_source(source)
    caffe = source == "caffe"
    block, prefix = (CaffeInception, "inception_") if caffe else (Inception, "inception")
    layers, channels = _stem(caffe), 192
    for name, widths in BLOCKS.items():
        if name in ("4a", "5a"):
            size = 2 if name == "5a" and not caffe else 3
            layers[f"pool{int(name[0]) - 1}"] = nn.MaxPool2d(size, 2, ceil_mode=True)
        layers[prefix + name] = block(channels, *widths)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    layers["drop"] = nn.Dropout(0.4 if caffe else 0.2)
    preprocess = CAFFE if caffe else SIGNED
    return Classifier(layers, channels, {"pool3": 480, "pool2": 192}, SMALLEST[source], preprocess, {})


def _stem(caffe):
    """Images to (N, 192, h, w) at stride 8."""
    pool1, pool2 = (nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(2))
    if not caffe:
        conv1, conv2, conv3 = conv_bn_relu(3, 64, 7, stride=2), conv_bn_relu(64, 64, 1), conv_bn_relu(64, 192, 3)
        return OrderedDict(conv1=conv1, pool1=pool1, conv2=conv2, conv3=conv3, pool2=pool2)
    conv1 = nn.Sequential(OrderedDict([("7x7_s2", nn.Conv2d(3, 64, 7, 2, padding=3)), ("relu", nn.ReLU(inplace=True))]))
    conv2 = nn.Sequential(
        OrderedDict(
            [
                ("3x3_reduce", nn.Conv2d(64, 64, 1)),
                ("relu_reduce", nn.ReLU(inplace=True)),
                ("3x3", nn.Conv2d(64, 192, 3, padding=1)),
                ("relu", nn.ReLU(inplace=True)),
            ]
        )
    )
    norm1, norm2 = (nn.LocalResponseNorm(5, 1e-4, 0.75) for _ in range(2))
    return OrderedDict(conv1=conv1, pool1=pool1, norm1=norm1, conv2=conv2, norm2=norm2, pool2=pool2)


def fcn32s_googlenet(*, num_classes=21, source="caffe"):
    """FCN-32s on a GoogLeNet, FCN-GoogLeNet in the paper; `source` also chooses the form of the network."""
    return SkipFCN(googlenet(source), num_classes)


def fcn16s_googlenet(*, num_classes=21, source="caffe"):
    """FCN-16s on a GoogLeNet, one skip from pool3."""
    return SkipFCN(googlenet(source), num_classes, skips=1)


def fcn8s_googlenet(*, num_classes=21, source="caffe"):
    """FCN-8s on a GoogLeNet, skips from pool3 and pool2."""
    return SkipFCN(googlenet(source), num_classes, skips=2)
