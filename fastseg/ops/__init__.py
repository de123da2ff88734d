"""Functional ops with the signatures of torch.nn.functional. One row per op."""

from fastseg.ops.atrous_conv2d import atrous_conv2d
from fastseg.ops.atrous_pyramid import atrous_pyramid
from fastseg.ops.deconv2d import deconv2d
from fastseg.ops.pyramid_conv2d import pyramid_conv2d
from fastseg.ops.pyramid_pool import pyramid_pool
from fastseg.ops.upsample_argmax import upsample_argmax
from fastseg.ops.upsample_bilinear import upsample_bilinear
from fastseg.ops.upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "atrous_conv2d",
    "atrous_pyramid",
    "deconv2d",
    "pyramid_conv2d",
    "pyramid_pool",
    "upsample_argmax",
    "upsample_bilinear",
    "upsample_cross_entropy",
]
