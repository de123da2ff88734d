"""Checks of the arguments that convolutions have in common, with one clear error each."""

import numbers

import torch


def check_tensors(op, *named, filled="none empty"):
    """named: (name, tensor, its axes, one letter each), the first of which tells the device and dtype of all.

    An axis "N", of images, may be empty; `filled` says in the error that others may not.
    """
    _, first, _ = named[0]
    for name, tensor, axes in named:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
        if tensor.dim() != len(axes) or 0 in tensor.shape[axes.startswith("N") :]:
            raise ValueError(f"{op}: {name} must have {len(axes)} axes, {filled}, got {tuple(tensor.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} must be on {first.device} as input is, got {tensor.device}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} must be {first.dtype} as input is, got {tensor.dtype}")


def given(*named):
    """What is not None of optional tensors, (name, tensor, ...)."""
    return [each for each in named if each[1] is not None]


def is_int(n):
    return isinstance(n, (numbers.Integral, torch.SymInt))


def pair(op, name, value, least):
    """One int or two, such as a stride, as two."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    both = both * 2 if len(both) == 1 else both
    if len(both) != 2 or not all(is_int(n) and n >= least for n in both):
        raise ValueError(f"{op}: {name} must be an int or two, from {least} on, got {value!r}")
    return tuple(n if isinstance(n, torch.SymInt) else int(n) for n in both)
