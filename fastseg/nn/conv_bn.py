"""Convolution and batch normalisation as one convolution, while labelling.

    bn(conv(x)) = s (W * x + c) + (b - s m) = (s W) * x + (b - s (m - c)),      s = g / sqrt(v + eps)

with the convolution's bias c, if it has one, the running mean m and the variance v. It saves a pass over the
activations and the memory of one. The weights are scaled anew at every call, as a folded copy would take memory and
could go stale; so it is done only where they are smaller than the activations. `fastseg.fold` makes such a copy.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.nn.atrous import AtrousConv2d
from fastseg.nn.freezing import FrozenBatchNorm2d
from fastseg.nn.watched import is_plain
from fastseg.ops import atrous_conv2d

CONVOLUTIONS = (nn.Conv2d, AtrousConv2d)
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def conv_bn(conv, bn, x):
    """bn(conv(x)) (N, O, h, w) of x (N, C, H, W), in one convolution where nothing can tell the difference.

    Scale and shift are computed in float32 at least and rounded once.
    """
    if not (may_fold(conv, bn, x) and weights_are_small(conv, x)):
        return bn(conv(x))
    convolved = atrous_conv2d if type(conv) is AtrousConv2d else F.conv2d
    return convolved(x, *scaled(conv, bn), conv.stride, conv.padding, conv.dilation, conv.groups)


def may_fold(conv, bn, x):
    """Plain eager labelling: no gradient, no graph being recorded, fixed statistics, one dtype; and both are the plain
    modules, as a hook, a wrapper, a parametrisation or a subclass must see its own call."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, torch.Tensor):
        return False
    if bn.training or torch.is_grad_enabled() or not (is_plain(conv, CONVOLUTIONS) and is_plain(bn, NORMS)):
        return False
    if bn.running_mean is None:  # track_running_stats=False: the batch's own, in eval mode too
        return False
    if _is_autocast(x.device.type) or not (x.dtype == conv.weight.dtype == bn.running_mean.dtype):
        return False
    return conv.padding_mode == "zeros" and bn.affine


def _is_autocast(kind):
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # "meta" has none to ask for


def weights_are_small(conv, x):
    """C k k weights per output channel against N h w pixels."""
    pixels = x.shape[0] * (x.shape[2] // conv.stride[0]) * (x.shape[3] // conv.stride[1])
    return conv.weight[0].numel() <= pixels


def scale_and_shift(conv, bn, dtype):
    """(s, b - s (m - c)), each (O,), in a dtype."""
    scale = torch.rsqrt(bn.running_var.to(dtype) + bn.eps)
    scale = scale if bn.weight is None else scale * bn.weight.to(dtype)
    mean = bn.running_mean.to(dtype)
    mean = mean if conv.bias is None else mean - conv.bias.to(dtype)
    return scale, -scale * mean if bn.bias is None else bn.bias.to(dtype) - scale * mean


def scaled(conv, bn):
    """(weight, bias) of the one convolution, in the weight's dtype."""
    dtype = conv.weight.dtype
    scale, shift = scale_and_shift(conv, bn, torch.promote_types(dtype, torch.float32))
    return (conv.weight * scale.view(-1, 1, 1, 1)).to(dtype), shift.to(dtype)


class ConvBNSequential(nn.Sequential):
    """nn.Sequential that runs a convolution and the batch normalisation after it by `conv_bn`."""

    def forward(self, x):
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if isinstance(module, nn.Conv2d) and modules and isinstance(modules[0], nn.BatchNorm2d):
                x = conv_bn(module, modules.pop(0), x)
            else:
                x = module(x)
        return x
