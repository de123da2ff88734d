"""Memory formats of (N, C, H, W) tensors."""

import torch


def is_channels_last(x):
    """Whether a result should be channels_last because x is, or is a slice of such a tensor."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def laid_out(x, channels_last):
    """x as a dense tensor of exactly that memory format."""
    return torch.empty_like(x, memory_format=memory_format(channels_last)).copy_(x)


def in_format(x, channels_last):
    """x, which the caller owns, in that memory format: x itself if it is."""
    return x if x.is_contiguous(memory_format=memory_format(channels_last)) else laid_out(x, channels_last)
