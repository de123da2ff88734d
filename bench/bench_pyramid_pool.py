"""pyramid_pool and its gradient on a ResNet's last features, at an eighth of the image's size."""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.passes import BACKWARD, BOTH, FORWARD
from fastseg.bench.values import value_judge

TITLE = "pyramid_pool: bins of 1, 2, 3 and 6 cells a side, and back (peer: F.adaptive_avg_pool2d for each, or max)"
OP = "pyramid_pool"
PASSES = (FORWARD, BACKWARD, BOTH)
BINS = (1, 2, 3, 6)
CELLS = sum(bin * bin for bin in BINS)


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple  # (N, C, H, W)
    mode: str = "avg"
    quick: bool = False

    @property
    def detail(self):
        return "x".join(map(str, self.shape)) + f", {self.mode}"


CASES = (
    Case("PSPNet 473", (1, 2048, 60, 60), quick=True),
    Case("PSPNet 473, max", (1, 2048, 60, 60), mode="max"),
    Case("PSPNet 473, batch 4", (4, 2048, 60, 60)),
    Case("PSPNet 473, batch 16", (16, 2048, 60, 60)),
    Case("PSPNet 713", (1, 2048, 90, 90)),
    Case("PSPNet 713, batch 4", (4, 2048, 90, 90)),
    Case("PSPNet 713, batch 16", (16, 2048, 90, 90)),
)


def fits(case, device):
    return device.type != "cpu" or case.shape[0] <= 4


def inputs(case, device, dtype):
    """As after a ReLU: half of the pixels are 0."""
    return (torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).relu().to(device, dtype),)


def upstream(case, device, dtype):
    shape = (*case.shape[:2], CELLS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def _in_a_row(pooled):
    """One tensor, which is what can be timed backward; 1 / 72 of the input at most, and the same for all."""
    return torch.cat([cells.flatten(2) for cells in pooled], 2)


def ours(case):
    return lambda x: _in_a_row(ops.pyramid_pool(x, BINS, case.mode))


def peer(case):
    pool = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}[case.mode]
    return lambda x: _in_a_row([pool(x, bin) for bin in BINS])


def checker(case, inputs):
    (x,) = inputs

    def output(i, dtype):
        return peer(case)(x[i : i + 1].to(dtype))[0]

    return value_judge(len(x), lambda i: output(i, torch.float64), lambda i: output(i, x.dtype))


def gradient_checker(case, inputs, upstream):
    (x,) = inputs

    def gradient(i, dtype):
        image = x[i : i + 1].detach().to(dtype).requires_grad_()
        return torch.autograd.grad(peer(case)(image), image, upstream[i : i + 1].to(dtype))[0][0]

    exact = functools.cache(lambda i: gradient(i, torch.float64))
    judge = value_judge(len(x), exact, lambda i: gradient(i, x.dtype))
    return lambda gradients: judge(*gradients)


def bytes(case, dtype, which):
    """Either way each pixel and each cell once, and the places of maxima."""
    values = math.prod(case.shape) + math.prod(case.shape[:2]) * CELLS
    places = math.prod(case.shape[:2]) * CELLS * torch.int64.itemsize if case.mode == "max" else 0
    return (values * dtype.itemsize + places) * (2 if which == BOTH else 1)


def memory(case, dtype, which):
    """The input in two formats, PyTorch's gradients of the bins and their sum, and some images in float64."""
    image, images = math.prod(case.shape[1:]), case.shape[0]
    return images * image * dtype.itemsize * (2 if which == FORWARD else 5) + 6 * image * torch.float64.itemsize
