"""AlexNet in two forms, made convolutional, and the FCNs on it.

caffe        CaffeNet, which FCN-AlexNet was trained from: two groups, normalisation across channels after pooling
torchvision  "One weird trick" (arXiv 1404.5997): fewer channels, neither groups nor normalisation
"""

from collections import OrderedDict

from torch import nn

from fastseg.models.classifiers import Classifier, check_source, fully_connected
from fastseg.models.preprocess import CAFFE, IMAGENET
from fastseg.models.skip_fcn import SkipFCN

PADDING = 100  # of the first layer, as in FCN-AlexNet


def alexnet(source="caffe", fc_channels=4096):
    """Names of layers are Caffe's in both forms."""
    check_source(source)
    caffe = source == "caffe"
    groups = 2 if caffe else 1
    widths = (96, 256, 384, 384, 256) if caffe else (64, 192, 384, 256, 256)

    layers = OrderedDict(conv1=nn.Conv2d(3, widths[0], 11, stride=4, padding=PADDING), relu1=nn.ReLU(inplace=True))
    layers["pool1"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    if caffe:
        layers["norm1"] = nn.LocalResponseNorm(5, 1e-4, 0.75)
    layers["conv2"] = nn.Conv2d(widths[0], widths[1], 5, padding=2, groups=groups)
    layers["relu2"] = nn.ReLU(inplace=True)
    layers["pool2"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    if caffe:
        layers["norm2"] = nn.LocalResponseNorm(5, 1e-4, 0.75)
    for k in (3, 4, 5):
        layers[f"conv{k}"] = nn.Conv2d(widths[k - 2], widths[k - 1], 3, padding=1, groups=1 if k == 3 else groups)
        layers[f"relu{k}"] = nn.ReLU(inplace=True)
    layers["pool5"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    layers |= fully_connected(widths[4], 6, fc_channels)

    names = {f"features.{place}": f"conv{k}" for k, place in enumerate((0, 3, 6, 8, 10), 1)}
    names |= {"classifier.1": "fc6", "classifier.4": "fc7"}
    skips = {"pool2": widths[1], "pool1": widths[0]}
    return Classifier(layers, fc_channels, skips, 1, CAFFE if caffe else IMAGENET, names)


def fcn32s_alexnet(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-32s on an AlexNet, FCN-AlexNet in the paper; `source` also chooses the form of the network."""
    return SkipFCN(alexnet(source, fc_channels), num_classes)


def fcn16s_alexnet(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-16s on an AlexNet, one skip from pool2."""
    return SkipFCN(alexnet(source, fc_channels), num_classes, skips=1)


def fcn8s_alexnet(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-8s on an AlexNet, skips from pool2 and pool1."""
    return SkipFCN(alexnet(source, fc_channels), num_classes, skips=2)
