"""upsample_cross_entropy at the ends of the networks, as in validation (forward) and in training (both).

There is no "backward" alone: our op takes the gradient in the forward pass, and backward only scales it.
"""

import functools
import math

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench import heads
from fastseg.bench.passes import BOTH, FORWARD
from fastseg.bench.values import mean_judge, value_judge

TITLE = "upsample_cross_entropy: the loss of low-resolution logits (peer: F.cross_entropy(F.interpolate(...), target))"
OP = "upsample_cross_entropy"
PASSES = (FORWARD, BOTH)
CASES = heads.CASES
compiles, fits = heads.compiles, heads.fits


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(0)
    return heads.logits(case, random).to(device, dtype), heads.targets(case, random).to(device)


def ours(case):
    return lambda x, target: ops.upsample_cross_entropy(x, target, ignore_index=heads.IGNORED)


def peer(case):
    return lambda x, target: _loss(x.float(), target)


def _loss(x, target, reduction="mean"):
    logits = F.interpolate(x, target.shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, target, ignore_index=heads.IGNORED, reduction=reduction)


def checker(case, inputs):
    x, target = inputs
    exact = error = 0.0
    for i in range(len(x)):
        truth = _loss(x[i : i + 1].double(), target[i : i + 1], "none")
        own = _loss(x[i : i + 1].float(), target[i : i + 1], "none")
        exact += truth.sum().item()
        error += (own.double() - truth).abs().sum().item()
    count = (target != heads.IGNORED).sum().item()
    return mean_judge(exact / count, error / count, count)


def gradient_checker(case, inputs, upstream):
    x, target = inputs
    count = (target != heads.IGNORED).sum()

    def gradient(i, dtype):
        image = x[i : i + 1].detach().to(dtype).requires_grad_()
        loss = _loss(image.to(torch.promote_types(dtype, torch.float32)), target[i : i + 1], "sum") / count
        return torch.autograd.grad(loss, image)[0][0]

    exact = functools.cache(lambda i: gradient(i, torch.float64))
    judge = value_judge(len(x), exact, lambda i: gradient(i, x.dtype))
    return lambda gradients: judge(*gradients)


def bytes(case, dtype, which):
    """Logits and targets read once; in training the gradient written once."""
    values = math.prod(case.shape) * dtype.itemsize
    return values * (2 if which == BOTH else 1) + case.shape[0] * math.prod(case.size) * torch.int64.itemsize


def memory(case, dtype, which):
    """At worst three tensors of full size in float32 (measured), and some images in float64 for the check."""
    full, image = math.prod(case.full_shape), math.prod(case.full_shape[1:])
    return 3 * full * torch.float32.itemsize + 6 * image * torch.float64.itemsize
