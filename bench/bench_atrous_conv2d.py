"""atrous_conv2d and its gradients: the 3x3 convolutions of ASPP over 2048 channels, and a ResNet's dilated ones."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.channels import CHECKED, gradient_judge, output_judge
from fastseg.bench.passes import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT
from fastseg.ops.atrous_conv2d_plan import axis, executed_work, outputs_of

TITLE = "atrous_conv2d: dilated 3x3 convolution, and its gradients (peer: F.conv2d)"
OP = "atrous_conv2d"
PASSES = (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)
ON_CPU = {(33, 12), (65, 1), (65, 12), (65, 24), (65, 36)}  # height, rate: PyTorch's kernels run there, a few will do


@dataclass(frozen=True)
class Case:
    name: str
    input: tuple  # (N, C, H, W)
    outputs: int
    rate: int
    quick: bool = False
    on_cpu: bool = False

    @property
    def detail(self):
        executed = executed_flops(self, FORWARD) / flops(self, FORWARD)
        return "x".join(map(str, self.input)) + f" -> {self.outputs}, {100 * executed:.0f} % executed"

    @property
    def weight(self):
        return self.outputs, self.input[1], 3, 3

    @property
    def output(self):
        return self.input[0], self.outputs, *self.input[2:]


def _table():
    """What DeepLabv3 convolves: crops of 513 at output stride 16 and 8, Cityscapes at both."""
    for outputs in (256, 512):
        for height, width in ((33, 33), (65, 65), (64, 128), (128, 256)):
            for rate in (1, 6, 12, 18, 24, 36):
                for batch in (1, 8, 16):
                    name = f"{height}x{width}, rate {rate}, batch {batch}, to {outputs}"
                    quick = (outputs, height, rate, batch) == (256, 33, 12, 1)
                    on_cpu = (outputs, batch) == (256, 1) and (height, rate) in ON_CPU
                    yield Case(name, (batch, 2048, height, width), outputs, rate, quick, on_cpu)


CASES = (
    *_table(),
    Case("layer4, rate 2", (1, 512, 33, 33), 512, 2, quick=True, on_cpu=True),
    Case("layer4, rate 4", (1, 512, 65, 65), 512, 4, on_cpu=True),
    Case("layer4, rate 2, batch 16", (16, 512, 33, 33), 512, 2),
    Case("layer4, rate 4, batch 16", (16, 512, 65, 65), 512, 4),
)


def fits(case, device):
    return device.type != "cpu" or case.on_cpu


def inputs(case, device, dtype):
    """The input as after a ReLU."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(case.input, generator=random).relu()
    weight = torch.randn(case.weight, generator=random) / math.sqrt(math.prod(case.weight[1:]))
    return x.to(device, dtype), weight.to(device, dtype)


def upstream(case, device, dtype):
    return torch.randn(case.output, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ours(case):
    return lambda x, weight: ops.atrous_conv2d(x, weight, padding=case.rate, dilation=case.rate)


def peer(case):
    return lambda x, weight: F.conv2d(x, weight, padding=case.rate, dilation=case.rate)


def checker(case, inputs):
    return output_judge(peer(case), inputs, weights=(1,))


def gradient_checker(case, inputs, upstream):
    return gradient_judge(peer(case), inputs, upstream)


def bytes(case, dtype, which):
    """What is read and what is written, once each: any two of input, weight and output, and the third."""
    return sum(math.prod(shape) for shape in (case.input, case.weight, case.output)) * dtype.itemsize


def flops(case, which):
    """Padding counts like pixels; the three passes are the same sum."""
    return 2 * math.prod(case.weight) * case.input[0] * math.prod(case.input[2:])


def executed_flops(case, which):
    """Of whole tiles; of the weight's gradient, which sums over pixels, those that are valid."""
    rows, columns = (axis(n, 3, 1, case.rate, case.rate) for n in case.input[2:])  # also of the input's gradient
    if which == WEIGHT_GRADIENT:
        valid = [
            sum(stop - first for first, stop in (outputs_of(axis, tap) for tap in range(3))) for axis in (rows, columns)
        ]
        return flops(case, which) * math.prod(valid) / (9 * math.prod(case.input[2:]))
    return flops(case, which) * executed_work(case.input[0], rows, columns)


def memory(case, dtype, which):
    """Everything in both formats and with gradients, and the check in float64."""
    x, weight, output = (math.prod(shape) for shape in (case.input, case.weight, case.output))
    held = 3 * (x + weight + output) * dtype.itemsize
    return held + (4 * (x + weight) // CHECKED + 4 * output) * torch.float64.itemsize
