"""Weights (C, C, k, k) that are zero between different channels: the deconvolution is depthwise."""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_known = WeakTensorKeyDictionary()  # weight -> (its state, whether it is diagonal or None: not looked at)


def depthwise(weight, groups, look=True):
    """The same (weight, groups), but (C, 1, k, k) and C groups of a weight that is known to be diagonal."""
    if is_diagonal(weight, groups, look):
        return weight.diagonal().permute(2, 0, 1)[:, None], weight.shape[0]
    return weight, groups


def is_diagonal(weight, groups, look=True):
    """Whether a weight is known to be zero between different channels.

    To say False is always right, only slower. A weight is looked at when the same version of it comes a second time:
    once, and never in a training that changes it at every step. Nor is it without `look`, or during the capture of a
    CUDA graph, which cannot wait for the answer. PyTorch counts as versions what is written in place or assigned, but
    not writes through weight.data: after those, call torch.autograd.graph.increment_version(weight).
    """
    if groups != 1 or weight.shape[0] != weight.shape[1] or weight.shape[0] == 1 or weight.is_inference():
        return False
    state = weight._version, weight.data_ptr()  # the latter changes with `weight.data = ...`
    before, diagonal = _known.get(weight, (None, None))
    if before == state and diagonal is not None:
        return diagonal
    if not look or weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    diagonal = None
    if before == state:
        between = weight.detach().clone()
        between.diagonal().zero_()
        diagonal = not between.any().item()
    _known[weight] = (state, diagonal)
    return bool(diagonal)
