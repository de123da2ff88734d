"""The check of values: they may be off by 1.5 times what PyTorch's own are off by in that dtype, and by rounding."""

import math

import torch

from fastseg.bench.verdict import Verdict

MARGIN = 1.5


def value_judge(count, exact, own):
    """A judge of a tensor (N, ...) of `count` images.

    exact(i), own(i): image i in float64, and as PyTorch computes it in the inputs' dtype. Both the L2 norm of the error
    and the largest error, relative to those of the values, must be small enough. One image at a time is held.
    """
    like = own(0)
    scales = _norms(count, exact)
    rounding = torch.finfo(like.dtype).eps

    def errors(values):
        return [norm / scale for norm, scale in zip(_norms(count, lambda i: values(i) - exact(i)), scales, strict=True)]

    own_errors = errors(own)

    def judge(y):
        want = (count, *like.shape)
        if tuple(y.shape) != want or y.dtype != like.dtype:
            return Verdict(None, f"{y.dtype} of shape {tuple(y.shape)}, wanted {like.dtype} of shape {want}")
        found = errors(y.__getitem__)
        for name, error, own_error in zip(("L2", "largest"), found, own_errors, strict=True):
            if not error <= MARGIN * own_error + rounding:  # so NaN is wrong
                return Verdict(found[0], f"relative {name} error {error:.2g}, PyTorch's own is {own_error:.2g}")
        return Verdict(found[0])

    return judge


def mean_judge(exact, error, count, dtype=torch.float32):
    """A judge of a mean of `count` positive numbers, a scalar in float32.

    It may be off by what PyTorch's numbers are off by on average, `error`, by the rounding of a sum of pairs, pairs of
    pairs and so on, and of the mean itself to `dtype`. PyTorch's own mean is no measure: it can be exact by chance.
    """
    rounding = math.log2(count) * torch.finfo(torch.float32).eps / 2 + torch.finfo(dtype).eps / 2
    allowed = MARGIN * error + rounding * exact

    def judge(loss):
        if loss.shape != () or loss.dtype != torch.float32:
            return Verdict(None, f"{loss.dtype} of shape {tuple(loss.shape)}, wanted a scalar in float32")
        off = abs(loss.item() - exact)
        wrong = None if off <= allowed else f"the loss is off by {off:.2g}, rounding explains {allowed:.2g}"
        return Verdict(off / exact, wrong)

    return judge


def _norms(count, image):
    """L2 norm and largest magnitude of image(0), image(1), ... together; NaN if there is one."""
    found = [(torch.linalg.vector_norm(x), torch.linalg.vector_norm(x, torch.inf)) for x in map(image, range(count))]
    l2, largest = map(torch.stack, zip(*found, strict=True))
    return torch.linalg.vector_norm(l2).item(), largest.max().item()
