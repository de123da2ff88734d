"""VGG-16 (arXiv 1409.1556), made convolutional, and the FCNs on it."""

from collections import OrderedDict

from torch import nn

from fastseg.models.classifiers import Classifier, check_source, fully_connected
from fastseg.models.constant_frame import PADDING
from fastseg.models.preprocess import CAFFE, IMAGENET
from fastseg.models.skip_fcn import SkipFCN

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16(source="caffe", fc_channels=4096):
    """Names of layers are Caffe's. Both sources have the same layers and differ in their images."""
    check_source(source)
    layers, channels = OrderedDict(), 3
    for stage, (width, count) in enumerate(STAGES, 1):
        for place in range(1, count + 1):
            layers[f"conv{stage}_{place}"] = nn.Conv2d(channels, width, 3, padding=1 if layers else PADDING)
            layers[f"relu{stage}_{place}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)

    # In torchvision's "features", layers are numbered as they stand here.
    names = {f"features.{k}": name for k, name in enumerate(layers)}
    names |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    layers |= fully_connected(channels, 7, fc_channels)
    preprocess = CAFFE if source == "caffe" else IMAGENET
    return Classifier(layers, fc_channels, {"pool4": 512, "pool3": 256}, 1, preprocess, names, "pool4")


def fcn32s_vgg16(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-32s on a VGG-16. `source` says where weights come from: "caffe" (BGR images) or "torchvision"."""
    return SkipFCN(vgg16(source, fc_channels), num_classes)


def fcn16s_vgg16(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-16s on a VGG-16, one skip from pool4."""
    return SkipFCN(vgg16(source, fc_channels), num_classes, skips=1)


def fcn8s_vgg16(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-8s on a VGG-16, skips from pool4 and pool3, for weights that were trained in stages."""
    return SkipFCN(vgg16(source, fc_channels), num_classes, skips=2)


def fcn8s_atonce_vgg16(*, num_classes=21, source="caffe", fc_channels=4096):
    """FCN-8s on a VGG-16 for weights that were trained at once. They have the names of the staged ones: know yours."""
    return SkipFCN(vgg16(source, fc_channels), num_classes, skips=2, at_once=True)
