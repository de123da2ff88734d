"""Where the pixels of one map lie in another, composed along layers: it says how to crop maps onto each other.

Pixel x of a layer's input has its centre at scale * x + shift in the output, with kernel k, stride s and padding p:
    convolution, pooling    scale = 1 / s,   shift = (p - (k - 1) / 2) / s
    deconvolution           scale = s,       shift = (k - 1) / 2 - p
"""

from fractions import Fraction
from typing import NamedTuple

from torch import nn


class Coordinates(NamedTuple):
    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def then(self, following):
        return Coordinates(following.scale * self.scale, following.scale * self.shift + following.shift)


def along(*layers):
    """Coordinates of an input's pixels in the output of the layers one after another, square ones without dilation."""
    position = Coordinates()
    for layer in layers:
        position = position.then(_through(layer))
    return position


def _through(layer):
    if isinstance(layer, nn.Sequential):
        return along(*layer)
    if not isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.ConvTranspose2d)):
        return Coordinates()  # pixel by pixel, or as inception blocks padded to keep all pixels
    kernel, stride, padding = (
        value if isinstance(value, int) else value[0] for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    if isinstance(layer, nn.ConvTranspose2d):
        return deconvolution(kernel, stride, padding)
    return Coordinates(Fraction(1, stride), (padding - Fraction(kernel - 1, 2)) / stride)


def deconvolution(kernel, stride, padding=0):
    return Coordinates(Fraction(stride), Fraction(kernel - 1, 2) - padding)


def upsampling(position, stride, target):
    """(kernel, offset) of the bilinear deconvolution that takes a map at `position` to the resolution of `target`.

    Both are relative to the image, and pixel 0 of the target is pixel `offset` of the deconvolution's output. The
    kernel is 2 stride, or 2 stride - 1 where only that lets pixels meet.
    """
    for kernel in (2 * stride, 2 * stride - 1):
        scale, shift = position.then(deconvolution(kernel, stride))
        if scale == target.scale and (shift - target.shift).denominator == 1:
            return kernel, int(shift - target.shift)
    raise ValueError(f"upsampling: no deconvolution of stride {stride} takes {position} onto {target}")
