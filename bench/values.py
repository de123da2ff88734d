"""The check of values: they may be off by 1.5 times what PyTorch's own are off by in that dtype, and by rounding."""

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


def _norms(count, image):
    """L2 norm and largest magnitude of image(0), image(1), ... together; NaN if there is one."""
    found = [(torch.linalg.vector_norm(x), torch.linalg.vector_norm(x, torch.inf)) for x in map(image, range(count))]
    l2, largest = map(torch.stack, zip(*found, strict=True))
    return torch.linalg.vector_norm(l2).item(), largest.max().item()
