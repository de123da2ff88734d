"""What autocast does to the arguments of a convolution."""

import torch


def autocast(input, *others):
    """The tensors in autocast's dtype for the device of input, where it is on; what is None stays so, and float64."""
    kind = input.device.type if isinstance(input, torch.Tensor) else "cpu"
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return [input, *others]
    return [_cast(x, torch.get_autocast_dtype(kind)) for x in (input, *others)]


def _cast(x, dtype):
    castable = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if castable else x
