"""pyramid_conv2d and its gradients: the convolution of PSPNet's head, over 2048 channels and 4 priors of 512."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.channels import CHECKED, gradient_judge, output_judge
from fastseg.bench.passes import BACKWARD, BOTH, FORWARD

TITLE = "pyramid_conv2d: 3x3 convolution with upsampled priors, and its gradients (peer: F.conv2d of the concatenation)"
OP = "pyramid_conv2d"
PASSES = (FORWARD, BACKWARD, BOTH)
BINS = (1, 2, 3, 6)


@dataclass(frozen=True)
class Case:
    name: str
    input: tuple  # (N, C, H, W)
    channels: int = 512  # of each prior
    outputs: int = 512
    quick: bool = False

    @property
    def detail(self):
        return "x".join(map(str, self.input)) + f" + {len(BINS)} * {self.channels} -> {self.outputs}"

    @property
    def weight(self):
        return self.outputs, self.input[1] + len(BINS) * self.channels, 3, 3

    @property
    def output(self):
        return self.input[0], self.outputs, *self.input[2:]

    @property
    def concatenation(self):
        return self.input[0], self.weight[1], *self.input[2:]


CASES = (
    Case("ResNet-18 473", (1, 512, 60, 60), channels=128, quick=True),
    Case("PSPNet 473", (1, 2048, 60, 60)),
    Case("PSPNet 473, batch 4", (4, 2048, 60, 60)),
    Case("PSPNet 473, batch 16", (16, 2048, 60, 60)),
    Case("PSPNet 713", (1, 2048, 90, 90)),
    Case("PSPNet 713, batch 4", (4, 2048, 90, 90)),
    Case("PSPNet 713, batch 16", (16, 2048, 90, 90)),
)


def fits(case, device):
    """On a CPU single images: a call for a batch takes many seconds."""
    return device.type != "cpu" or case.input[0] == 1


def inputs(case, device, dtype):
    """The input and priors as after a ReLU."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(case.input, generator=random).relu()
    weight = torch.randn(case.weight, generator=random) / math.sqrt(math.prod(case.weight[1:]))
    priors = [torch.randn(case.input[0], case.channels, bin, bin, generator=random).relu() for bin in BINS]
    return tuple(t.to(device, dtype) for t in (x, weight, *priors))


def upstream(case, device, dtype):
    return torch.randn(case.output, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ours(case):
    return lambda x, weight, *priors: ops.pyramid_conv2d(x, priors, weight)


def peer(case):
    def convolved(x, weight, *priors):
        upsampled = [F.interpolate(prior, x.shape[2:], mode="bilinear") for prior in priors]
        return F.conv2d(torch.cat([x, *upsampled], 1), weight, padding=1)

    return convolved


def checker(case, inputs):
    return output_judge(peer(case), inputs, weights=(1,))


def gradient_checker(case, inputs, upstream):
    return gradient_judge(peer(case), inputs, upstream)


def bytes(case, dtype, which):
    """What is read and what is written, once each, without upsampled priors: forward the input, priors, weight and
    output, backward the output's gradient, the input, priors and weight, and the gradients of these."""
    priors = case.input[0] * case.channels * sum(bin * bin for bin in BINS)
    given, output = math.prod(case.input) + math.prod(case.weight) + priors, math.prod(case.output)
    forward, backward = given + output, output + 2 * given
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[which] * dtype.itemsize


def flops(case, which):
    """Of the concatenation's convolution, most of which is not done; backward has two such sums."""
    forward = 2 * math.prod(case.weight) * case.input[0] * math.prod(case.input[2:])
    return forward * {FORWARD: 1, BACKWARD: 2, BOTH: 3}[which]


def memory(case, dtype, which):
    """The concatenation and what it is made of, their gradients, weights in some formats, and the check in float64."""
    together, weight = math.prod(case.concatenation), math.prod(case.weight)
    held = (2 * together + 3 * weight) * (1 if which == FORWARD else 2) * dtype.itemsize
    return held + (10 * together // CHECKED + 2 * weight // CHECKED) * torch.float64.itemsize
