"""atrous_pyramid: the branches of ASPP, a 1x1 convolution and 3x3 ones at three rates, side by side."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.channels import CHECKED, gradient_judge, output_judge
from fastseg.bench.passes import BACKWARD, FORWARD
from fastseg.ops.atrous_conv2d_plan import axis, executed_work

TITLE = "atrous_pyramid: ASPP's branches, and their gradients (peer: F.conv2d for each, concatenated)"
OP = "atrous_pyramid"
PASSES = (FORWARD, BACKWARD)
OUTPUTS = 256  # of each branch


@dataclass(frozen=True)
class Case:
    name: str
    input: tuple  # (N, C, H, W)
    rates: tuple
    quick: bool = False

    @property
    def detail(self):
        executed = executed_flops(self, FORWARD) / flops(self, FORWARD)
        what = "x".join(map(str, self.input)) + f" -> {len(self.weights)} * {OUTPUTS}"
        return what + f", {100 * executed:.0f} % executed"

    @property
    def weights(self):
        return (OUTPUTS, self.input[1], 1, 1), *((OUTPUTS, self.input[1], 3, 3),) * len(self.rates)

    @property
    def output(self):
        return self.input[0], len(self.weights) * OUTPUTS, *self.input[2:]


CASES = (
    Case("513, stride 16", (1, 2048, 33, 33), (6, 12, 18), quick=True),
    Case("513, stride 16, batch 8", (8, 2048, 33, 33), (6, 12, 18)),
    Case("513, stride 16, batch 16", (16, 2048, 33, 33), (6, 12, 18)),
    Case("513, stride 8", (1, 2048, 65, 65), (12, 24, 36)),
    Case("513, stride 8, batch 8", (8, 2048, 65, 65), (12, 24, 36)),
    Case("513, stride 8, batch 16", (16, 2048, 65, 65), (12, 24, 36)),
    Case("Cityscapes, stride 16", (1, 2048, 64, 128), (6, 12, 18)),
    Case("Cityscapes, stride 8", (1, 2048, 128, 256), (12, 24, 36)),
)


def fits(case, device):
    return device.type != "cpu" or (case.input[0] == 1 and case.input[2] <= 65)


def inputs(case, device, dtype):
    """The input as after a ReLU."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(case.input, generator=random).relu()
    weights = [torch.randn(shape, generator=random) / math.sqrt(math.prod(shape[1:])) for shape in case.weights]
    return tuple(tensor.to(device, dtype) for tensor in (x, *weights))


def upstream(case, device, dtype):
    return torch.randn(case.output, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ours(case):
    return lambda x, *weights: ops.atrous_pyramid(x, weights, (1, *case.rates))


def peer(case):
    def concatenated(x, one, *atrous):
        maps = [F.conv2d(x, weight, None, 1, rate, rate) for weight, rate in zip(atrous, case.rates, strict=True)]
        return torch.cat([F.conv2d(x, one), *maps], 1)

    return concatenated


def checker(case, inputs):
    return output_judge(peer(case), inputs, weights=range(1, len(inputs)))


def gradient_checker(case, inputs, upstream):
    return gradient_judge(peer(case), inputs, upstream)


def _elements(case):
    return math.prod(case.input), sum(map(math.prod, case.weights)), math.prod(case.output)


def bytes(case, dtype, which):
    """What is read and what is written, once each; backward reads the output's gradient, and input and weights as well
    as it writes their gradients."""
    x, weights, output = _elements(case)
    return {FORWARD: x + weights + output, BACKWARD: output + 2 * (x + weights)}[which] * dtype.itemsize


def flops(case, which):
    """Padding counts like pixels; backward has two such sums."""
    _, weights, _ = _elements(case)
    return 2 * weights * case.input[0] * math.prod(case.input[2:]) * {FORWARD: 1, BACKWARD: 2}[which]


def executed_flops(case, which):
    """Of whole tiles; backward as forward, though the weights' gradients execute less."""
    one, *atrous = map(math.prod, case.weights)  # the 1x1 branch has nothing to leave out, but its last tile's pixels
    work = one * executed_work(case.input[0], *(axis(n, 1, 1, 0, 1) for n in case.input[2:]))
    for rate, weight in zip(case.rates, atrous, strict=True):
        work += weight * executed_work(case.input[0], *(axis(n, 3, 1, rate, rate) for n in case.input[2:]))
    return flops(case, which) * work / _elements(case)[1]


def memory(case, dtype, which):
    """Everything in both formats and with gradients, and the check in float64."""
    x, weights, output = _elements(case)
    held = 3 * (x + weights + 2 * output) * dtype.itemsize
    return held + (4 * (x + weights) // CHECKED + 4 * output) * torch.float64.itemsize
