"""Atrous branches and the convolution after a concatenation, each as one operation: for our modules and for patches of
other libraries' (fastseg/patches). Callers see to it that containers may be bypassed; here their layers are looked at.
"""

import torch
from torch import nn

from fastseg.nn.conv_bn import CONVOLUTIONS, may_fold, scale_and_shift, scaled, weights_are_small
from fastseg.nn.folded import FoldedConv2d
from fastseg.nn.watched import is_plain
from fastseg.ops import atrous_pyramid, pyramid_conv2d


def atrous_maps(x, rows):
    """cat([relu(norm(conv(x))) for conv, norm, relu in rows]) while labelling, or None where layers must be called.

    rows: a tuple of layers, or None for a branch that must be called.
    """
    parts = [_part(row, x) for row in rows]
    if None in parts or len({scale is None for _, _, scale, _ in parts}) > 1:
        return None
    weights, rates, scales, shifts = zip(*parts, strict=True)
    scale = None if scales[0] is None else torch.cat(scales)
    return atrous_pyramid(x, weights, rates, scale=scale, bias=torch.cat(shifts), relu=True)


def _part(row, x):
    """(weight, rate, scale, shift) of a branch, or None."""
    if row is None or len(row) != 3 or not isinstance(row[0], nn.Conv2d) or not _is_branch(row[0]):
        return None
    conv, norm, relu = row
    if is_plain(conv, (FoldedConv2d,)) and conv.relu and all(is_plain(each, (nn.Identity,)) for each in (norm, relu)):
        return conv.weight, conv.dilation[0], conv.scale, conv.bias
    if not (is_plain(relu, (nn.ReLU,)) and may_fold(conv, norm, x)):
        return None
    scale, shift = scale_and_shift(conv, norm, torch.promote_types(x.dtype, torch.float32))
    return conv.weight, conv.dilation[0], scale.to(x.dtype), shift.to(x.dtype)


def _is_branch(conv):
    """Whether a convolution is what atrous_pyramid computes: dense, of one rate, and keeps H and W."""
    if conv.stride != (1, 1) or conv.groups != 1 or len(set(conv.dilation)) > 1 or conv.padding == "same":
        return False
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    return all(k % 2 and p == d * (k // 2) for k, d, p in zip(conv.kernel_size, conv.dilation, padding, strict=True))


def why_not_joining(name, conv):
    """Why `joined` cannot take the place of the convolution after a concatenation, or None."""
    if not is_plain(conv, CONVOLUTIONS):
        return f"{name} is not a plain Conv2d: {type(conv).__name__}, or with hooks"
    how = conv.stride, conv.dilation if max(conv.kernel_size) > 1 else (1, 1), conv.groups, conv.padding_mode
    if how != ((1, 1), (1, 1), 1, "zeros") or isinstance(conv.padding, str):
        return f"{name} has a stride, dilation, groups or a padding of another kind"
    return None


def joined(x, priors, conv, layers, align_corners, priors_first=False):
    """layers(conv(cat([x, *priors upsampled to x]))), or with the priors' channels first."""
    layers = list(layers)
    weight, bias = conv.weight, conv.bias
    if layers and isinstance(layers[0], nn.BatchNorm2d) and may_fold(conv, layers[0], x) and weights_are_small(conv, x):
        weight, bias = scaled(conv, layers.pop(0))
    if priors_first:
        weight = weight.roll(x.shape[1], 1)
    return through(layers, pyramid_conv2d(x, priors, weight, bias, conv.padding, align_corners))


def through(layers, x):
    for layer in layers:
        x = layer(x)
    return x
