"""Convolution and batch normalisation as one convolution, while labelling.

    bn(conv(x)) = s (W * x) + (b - s m) = (s W) * x + (b - s m),      s = g / sqrt(v + eps)

with the running mean m and variance v. It saves a pass over the activations and the memory of one. The weights are
scaled anew at every call, as a folded copy would take memory and could go stale; so it is done only where they are
smaller than the activations.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(conv, bn, x):
    """bn(conv(x)) (N, O, h, w) of x (N, C, H, W), in one convolution where nothing can tell the difference."""
    if not (_may_fold(conv, bn) and _weights_are_small(conv, x)):
        return bn(conv(x))
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # (O,)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return F.conv2d(x, weight, bn.bias - scale * bn.running_mean, conv.stride, conv.padding, conv.dilation, conv.groups)


def _may_fold(conv, bn):
    """No gradient is asked for, the statistics are fixed, and both are the plain modules: a hook, a parametrisation
    or a subclass must see its own call."""
    if bn.training or torch.is_grad_enabled() or type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d:
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (conv, bn))
    return not hooked and conv.bias is None and conv.padding_mode == "zeros" and bn.affine and bn.track_running_stats


def _weights_are_small(conv, x):
    """C k k weights per output channel against N h w pixels."""
    pixels = x.shape[0] * (x.shape[2] // conv.stride[0]) * (x.shape[3] // conv.stride[1])
    return conv.weight[0].numel() <= pixels


class Sequential(nn.Sequential):
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
