"""What patches of several libraries share: what may be bypassed, and branches as one operation or one by one."""

import torch
from torch import nn

from fastseg.nn.joined import atrous_maps, through
from fastseg.nn.watched import is_plain, stock_class
from fastseg.ops import pyramid_pool
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


def pyramid_priors(x, branches):
    """The priors (N, R, h, w) of x by branches of a pooling and layers, which are called."""
    pooled = pyramid_pool(x, [branch[0].output_size for branch in branches])
    return [through(list(branch)[1:], cells) for branch, cells in zip(branches, pooled, strict=True)]


def aspp_maps(x, branches, rows):
    """cat([branch(x) ...]) of ASPP's branches, in one operation where each is a row of (convolution, norm, ReLU)."""
    maps = atrous_maps(x, rows)
    return torch.cat([branch(x) for branch in branches], 1) if maps is None else maps
