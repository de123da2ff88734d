"""Calls of atrous_conv2d's CUDA kernels, which copy 16 bytes at a time: channels and outputs are whole vectors.

Where they are not, zeros fill up the tensors, and results lose what these gave.
"""

import torch
import torch.nn.functional as F

from fastseg.ops import atrous_conv2d_tiles
from fastseg.ops.layout import in_format

DEPTH = 64  # bytes of a step along the sums: kDepth<T> in csrc/cuda/tile_product.h


def block(outputs):
    """Outputs of a tile. csrc/cuda/atrous_conv2d.cuh chooses its kernel by the same rule."""
    return 32 if outputs <= 32 else 128


def forward(kernel, input, weight, scale, bias, residual, stride, padding, dilation, groups, relu, channels_last):
    outputs = weight.shape[0]
    input, residual = (_filled(x, 1) for x in (input, residual))
    scale, bias = (_filled(x, 0) for x in (scale, bias))
    tensors = input, _filled(_filled(weight, 0), 1), scale, bias, residual
    how = stride, padding, dilation, groups, relu, channels_last
    return _first(atrous_conv2d_tiles.forward(kernel, block, *tensors, *how), outputs, channels_last)


def backward_input(kernel, grad, weight, stride, padding, dilation, groups, size, channels_last):
    tensors = _filled(grad, 1), _filled(_filled(weight, 0), 1)
    how = stride, padding, dilation, groups, size, channels_last
    return _first(atrous_conv2d_tiles.backward_input(kernel, block, *tensors, *how), weight.shape[1], channels_last)


def backward_weight(kernel, grad, input, stride, padding, dilation, groups, kernel_size, channels_last):
    tensors = _filled(grad, 1), _filled(input, 1)
    how = stride, padding, dilation, groups, kernel_size, channels_last
    depth = DEPTH // grad.element_size()
    gradient = atrous_conv2d_tiles.backward_weight(kernel, block(grad.shape[1]), depth, *tensors, *how)
    return in_format(gradient[: grad.shape[1], : input.shape[1]], channels_last)


def pyramid(kernel, input, weights, scale, bias, dilations, relu, channels_last):
    outputs = [weight.shape[0] for weight in weights]
    weights = [_filled(_filled(weight, 0), 1) for weight in weights]
    scale, bias = (x if x is None else torch.cat([_filled(y, 0) for y in x.split(outputs)]) for x in (scale, bias))
    filled = [weight.shape[0] for weight in weights]
    how = scale, bias, dilations, relu, channels_last
    result = atrous_conv2d_tiles.pyramid(kernel, block, _filled(input, 1), weights, *how)
    if filled == outputs:
        return result
    maps = result.split(filled, 1)
    return in_format(torch.cat([x[:, :o] for x, o in zip(maps, outputs, strict=True)], 1), channels_last)


def _filled(x, axis):
    """x, or None, with zeros behind it along an axis, up to whole vectors of 16 bytes."""
    if x is None or (missing := -x.shape[axis] % (16 // x.element_size())) == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, missing])


def _first(x, channels, channels_last):
    return x if x.shape[1] == channels else in_format(x[:, :channels], channels_last)
