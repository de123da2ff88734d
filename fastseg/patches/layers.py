"""What patches of several libraries share: what may be bypassed, and the fused forms of ASPP and of the pyramid."""

import torch
from torch import nn

from fastseg.nn.conv_bn import CONVOLUTIONS, may_fold, scale_and_shift, scaled, weights_are_small
from fastseg.nn.watched import is_plain, stock_class
from fastseg.ops import atrous_pyramid, pyramid_conv2d, pyramid_pool
from fastseg.patches.registry import qualified

SEQUENTIAL = qualified(nn.Sequential)
POOL = qualified(nn.AdaptiveAvgPool2d)


def first_reason(reasons):
    return next((reason for reason in reasons if reason is not None), None)


def why_not_bypass(name, module, *kinds):
    """Why a child may not be computed without being called, or None. kinds: qualified names of classes."""
    kind = stock_class(module)
    if qualified(kind) not in kinds:
        wanted = " or ".join(each.rpartition(".")[2] for each in kinds)
        return f"{name} is {type(module).__name__}, not {wanted}"
    return None if is_plain(module, (kind,)) else f"{name} has hooks or a forward of its own"


def why_not_pooling(name, module):
    """The same, of an nn.AdaptiveAvgPool2d for pyramid_pool."""
    if reason := why_not_bypass(name, module, POOL):
        return reason
    size = module.output_size
    known = size is not None and (isinstance(size, int) or None not in size)
    return None if known else f"{name} keeps a side of its input"


def why_not_joining(name, conv):
    """The same, of the convolution after a concatenation, for pyramid_conv2d."""
    if not is_plain(conv, CONVOLUTIONS):
        return f"{name} is not a plain Conv2d: {type(conv).__name__}, or with hooks"
    how = conv.stride, conv.dilation if max(conv.kernel_size) > 1 else (1, 1), conv.groups, conv.padding_mode
    if how != ((1, 1), (1, 1), 1, "zeros") or isinstance(conv.padding, str):
        return f"{name} has a stride, dilation, groups or a padding of another kind"
    return None


def pyramid_priors(x, branches):
    """The priors (N, R, h, w) of x by branches of a pooling and layers, which are called."""
    pooled = pyramid_pool(x, [branch[0].output_size for branch in branches])
    return [_through(list(branch)[1:], cells) for branch, cells in zip(branches, pooled, strict=True)]


def joined(x, priors, conv, layers, align_corners, priors_first=False):
    """layers(conv(cat([x, *priors upsampled to x]))), or with the priors' channels first."""
    layers = list(layers)
    weight, bias = conv.weight, conv.bias
    if layers and isinstance(layers[0], nn.BatchNorm2d) and may_fold(conv, layers[0], x) and weights_are_small(conv, x):
        weight, bias = scaled(conv, layers.pop(0))
    if priors_first:
        weight = weight.roll(x.shape[1], 1)
    return _through(layers, pyramid_conv2d(x, priors, weight, bias, conv.padding, align_corners))


def atrous_maps(x, branches, rows):
    """cat([branch(x) ...]) of ASPP's branches, in one operation where each is a row of (convolution, norm, ReLU)."""
    parts = [_part(*row, x) if row is not None else None for row in rows]
    if None in parts:
        return torch.cat([branch(x) for branch in branches], 1)
    weights, rates, scales, shifts = zip(*parts, strict=True)
    return atrous_pyramid(x, weights, rates, scale=torch.cat(scales), bias=torch.cat(shifts), relu=True)


def _part(conv, bn, relu, x):
    """(weight, rate, scale, shift) of a branch while labelling, or None where it must be called."""
    if not (is_plain(relu, (nn.ReLU,)) and may_fold(conv, bn, x)):
        return None
    sides = zip(conv.kernel_size, conv.dilation, (0, 0) if conv.padding == "valid" else conv.padding, strict=True)
    keeps_size = conv.padding != "same" and all(k % 2 and p == d * (k // 2) for k, d, p in sides)
    if conv.stride != (1, 1) or conv.groups != 1 or len(set(conv.dilation)) > 1 or not keeps_size:
        return None
    scale, shift = scale_and_shift(conv, bn, torch.promote_types(x.dtype, torch.float32))
    return conv.weight, conv.dilation[0], scale.to(x.dtype), shift.to(x.dtype)


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x
