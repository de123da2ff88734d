"""Weights (C, C, k, k) that are zero between different channels: the deconvolution is depthwise."""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_known = WeakTensorKeyDictionary()  # weight -> (its state, whether it is diagonal or None: not looked at)


def depthwise(weight, groups):
    """The same (weight, groups), but (C, 1, k, k) and C groups of a weight that is known to be diagonal."""
    if is_diagonal(weight, groups):
        return weight.diagonal().permute(2, 0, 1)[:, None], weight.shape[0]
    return weight, groups


def is_diagonal(weight, groups):
    """Whether a weight is known to be zero between different channels. To say False is always right, only slower.

    On a CPU its values are looked at in every call: that takes little beside the deconvolution, and nothing can be
    missed. A GPU would have to be waited for.
    """
    if groups != 1 or weight.shape[0] != weight.shape[1] or weight.shape[0] == 1:
        return False
    return is_known_as_diagonal(weight) if weight.is_cuda else has_diagonal_values(weight)


def has_diagonal_values(weight):
    if weight[0, 1].any():  # mostly that settles it
        return False
    return bool(weight.count_nonzero() == weight.diagonal().count_nonzero())


def is_known_as_diagonal(weight):
    """has_diagonal_values, looked up once per version of a weight: when the same one comes a second time.

    So never in a training, for a tensor made anew for each call, or while a CUDA graph is captured, which cannot wait.
    A weight that requires a gradient is not trusted: fused optimisers change it without a new version. Nor do writes
    through weight.data of one that does not: after those, call torch.autograd.graph.increment_version(weight).
    """
    if weight.requires_grad:
        _known.pop(weight, None)
        return False
    if weight.is_inference():  # has no version
        return False
    state = weight._version, weight.data_ptr()  # the latter changes with most `weight.data = ...`
    before, diagonal = _known.get(weight, (None, None))
    if before == state and diagonal is not None:
        return diagonal
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    diagonal = has_diagonal_values(weight.detach()) if before == state else None
    _known[weight] = (state, diagonal)
    return bool(diagonal)
