"""upsample_bilinear and its gradient at the ends of the networks."""

import functools
import math

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench import heads
from fastseg.bench.passes import BACKWARD, BOTH, FORWARD
from fastseg.bench.values import value_judge

TITLE = "upsample_bilinear: low-resolution logits to full size, and back (peer: F.interpolate and its gradient)"
OP = "upsample_bilinear"
PASSES = (FORWARD, BACKWARD, BOTH)
CASES = heads.CASES
compiles, fits = heads.compiles, heads.fits


def inputs(case, device, dtype):
    return (heads.logits(case, torch.Generator().manual_seed(0)).to(device, dtype),)


def upstream(case, device, dtype):
    return torch.randn(case.full_shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ours(case):
    return lambda x: ops.upsample_bilinear(x, case.size)


def peer(case):
    return lambda x: F.interpolate(x, case.size, mode="bilinear")


def checker(case, inputs):
    (x,) = inputs

    def output(i, dtype):
        return F.interpolate(x[i : i + 1].to(dtype), case.size, mode="bilinear")[0]

    return value_judge(len(x), lambda i: output(i, torch.float64), lambda i: output(i, x.dtype))


def gradient_checker(case, inputs, upstream):
    (x,) = inputs

    def gradient(i, dtype):
        image = x[i : i + 1].detach().to(dtype).requires_grad_()
        output = F.interpolate(image, case.size, mode="bilinear")
        return torch.autograd.grad(output, image, upstream[i : i + 1].to(dtype))[0][0]

    exact = functools.cache(lambda i: gradient(i, torch.float64))
    judge = value_judge(len(x), exact, lambda i: gradient(i, x.dtype))
    return lambda gradients: judge(*gradients)


def bytes(case, dtype, which):
    """Either way each low-resolution and each full-size value once; nothing of forward is needed in backward."""
    values = math.prod(case.shape) + math.prod(case.full_shape)
    return values * dtype.itemsize * (2 if which == BOTH else 1)


def memory(case, dtype, which):
    """The output, the upstream gradient in two formats, and some images in float64 for the check."""
    full, image = math.prod(case.full_shape), math.prod(case.full_shape[1:])
    return full * dtype.itemsize * (1 if which == FORWARD else 3) + 6 * image * torch.float64.itemsize
