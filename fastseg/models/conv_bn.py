"""Convolution and batch normalisation as one convolution, while labelling.

    bn(conv(x)) = s (W * x) + (b - s m) = (s W) * x + (b - s m),      s = g / sqrt(v + eps)

with the running mean m and variance v. It saves a pass over the activations and the memory of one. The weights are
scaled anew at every call, as a folded copy would take memory and could go stale; so it is done only where they are
smaller than the activations.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def conv_bn(conv, bn, x):
    """bn(conv(x)) (N, O, h, w) of x (N, C, H, W), in one convolution where nothing can tell the difference.

    Scale and shift are computed in float32 at least and rounded once.
    """
    if not (_may_fold(conv, bn, x) and _weights_are_small(conv, x)):
        return bn(conv(x))
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = bn.weight.to(exact) * torch.rsqrt(bn.running_var.to(exact) + bn.eps)  # (O,)
    weight = (conv.weight * scale.view(-1, 1, 1, 1)).to(x.dtype)
    shift = (bn.bias - scale * bn.running_mean).to(x.dtype)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _may_fold(conv, bn, x):
    """Plain eager labelling: no gradient, no graph being recorded, fixed statistics, one dtype; and both are the plain
    modules, as a hook, a wrapper, a parametrisation or a subclass must see its own call."""
    if bn.training or torch.is_grad_enabled() or type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, torch.Tensor):
        return False
    if torch.is_autocast_enabled(x.device.type) or not (x.dtype == conv.weight.dtype == bn.running_mean.dtype):
        return False
    if _has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in (conv, bn)
    ):
        return False
    return conv.bias is None and conv.padding_mode == "zeros" and bn.affine and bn.track_running_stats


def _weights_are_small(conv, x):
    """C k k weights per output channel against N h w pixels."""
    pixels = x.shape[0] * (x.shape[2] // conv.stride[0]) * (x.shape[3] // conv.stride[1])
    return conv.weight[0].numel() <= pixels


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
