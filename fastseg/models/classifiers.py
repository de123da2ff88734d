"""Image classifiers made convolutional: what FCNs stand on, and where their weights come from (arXiv 1605.06211)."""

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from fastseg.models.preprocess import Preprocess

SOURCES = ("caffe", "torchvision")


class Classifier(NamedTuple):
    """A classifier without its last layer, as layers to be run in order.

    layers             {name: module}, images (N, 3, H, W) -> (N, channels, h, w) at stride 32
    channels           of the last map
    skips              {layer: channels} of the pooled maps at stride 16 and 8, in this order
    smallest           side of an image
    preprocess         what its weights were trained with
    torchvision_names  {torchvision's name: layer} where they differ
    framed             the pooling up to which constant_frame.py knows the layers, or None
    """

    layers: OrderedDict
    channels: int
    skips: dict
    smallest: int
    preprocess: Preprocess
    torchvision_names: dict
    framed: str | None = None


def check_source(source):
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")


def fully_connected(channels, size, width):
    """The two hidden layers of VGG and AlexNet as convolutions; `size` is what their pooled map had on one image."""
    return OrderedDict(
        fc6=nn.Conv2d(channels, width, size),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(),
        fc7=nn.Conv2d(width, width, 1),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(),
    )


def classifier_weights(state_dict, torchvision_names, wanted):
    """From an ImageNet classifier's state dict the entries of `wanted` = {name: tensor}, reshaped to fit.

    Names are the layers' or torchvision's. A fully connected layer is a convolution over the whole map: its weight
    (O, C h w) is reshaped to (O, C, h, w). Layers that are not wanted, such as the last one, are left out.
    """
    weights = {}
    for name, tensor in state_dict.items():
        layer, _, parameter = name.rpartition(".")
        name = f"{torchvision_names.get(layer, layer)}.{parameter}"
        if name in wanted:
            fits = tensor.dim() == 2 and tensor.numel() == wanted[name].numel()
            weights[name] = tensor.reshape(wanted[name].shape) if fits else tensor
    return weights
