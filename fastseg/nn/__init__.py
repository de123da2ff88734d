"""Modules with PyTorch's arguments and state dicts. A forward is one call of an op."""

from fastseg.nn.aspp import ASPP
from fastseg.nn.atrous import AtrousConv2d
from fastseg.nn.deconv import Deconv2d
from fastseg.nn.pyramid import PyramidConv2d, PyramidPooling, PyramidPriors
from fastseg.nn.upsample import AuxiliaryLoss, UpsampleBilinear, UpsampleCrossEntropyLoss

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "AuxiliaryLoss",
    "Deconv2d",
    "PyramidConv2d",
    "PyramidPooling",
    "PyramidPriors",
    "UpsampleBilinear",
    "UpsampleCrossEntropyLoss",
]
