"""deconv2d and its gradients: FCN's deconvolutions of 21 classes, and those of a decoder and a generator."""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.channels import in_either_format
from fastseg.bench.passes import BACKWARD, BOTH, FORWARD
from fastseg.bench.values import value_judge
from fastseg.bench.verdict import worst
from fastseg.nn import Deconv2d

TITLE = "deconv2d: learned upsampling, and its gradients (peer: F.conv_transpose2d)"
OP = "deconv2d"
PASSES = (FORWARD, BACKWARD, BOTH)


@dataclass(frozen=True)
class Case:
    name: str
    input: tuple  # (N, C, h, w)
    outputs: int
    kernel: int
    stride: int
    padding: int = 0
    bilinear: bool = False  # channel by channel, and frozen: the weight has no gradient
    quick: bool = False

    @property
    def detail(self):
        what = "x".join(map(str, self.input)) + f" -> {self.outputs} k{self.kernel} s{self.stride}"
        return what + (f" p{self.padding}" if self.padding else "")

    @property
    def weight(self):
        return self.input[1], self.outputs, self.kernel, self.kernel

    @property
    def output(self):
        sides = ((n - 1) * self.stride + self.kernel - 2 * self.padding for n in self.input[2:])
        return self.input[0], self.outputs, *sides


CASES = (
    Case("FCN-32s", (1, 21, 16, 16), 21, 64, 32, quick=True),
    Case("FCN-16s", (1, 21, 33, 33), 21, 32, 16),
    Case("FCN-8s", (1, 21, 64, 64), 21, 16, 8),
    Case("FCN x2", (1, 21, 34, 34), 21, 4, 2, quick=True),
    Case("FCN-32s, bilinear", (1, 21, 16, 16), 21, 64, 32, bilinear=True, quick=True),
    Case("FCN-8s, bilinear", (1, 21, 64, 64), 21, 16, 8, bilinear=True),
    Case("U-Net", (1, 256, 32, 32), 128, 2, 2),
    Case("DCGAN", (4, 256, 16, 16), 128, 4, 2, padding=1),
)


def inputs(case, device, dtype):
    """The input and the weight; without the weight where it is bilinear, and part of the module."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(case.input, generator=random)
    weight = torch.randn(case.weight, generator=random) * case.stride / case.kernel / math.sqrt(case.input[1])
    return tuple(t.to(device, dtype) for t in ((x,) if case.bilinear else (x, weight)))


def upstream(case, device, dtype):
    return torch.randn(case.output, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def _bilinear(case, module):
    weights = Deconv2d(case.input[1], case.outputs, case.kernel, case.stride, case.padding, bias=False, init="bilinear")
    module = module(case.input[1], case.outputs, case.kernel, case.stride, case.padding, bias=False)
    module.load_state_dict(weights.state_dict())
    return module


def ours(case):
    if case.bilinear:
        return _bilinear(case, Deconv2d)
    return lambda x, weight: ops.deconv2d(x, weight, stride=case.stride, padding=case.padding)


def peer(case):
    if case.bilinear:
        return _bilinear(case, torch.nn.ConvTranspose2d)
    return lambda x, weight: F.conv_transpose2d(x, weight, stride=case.stride, padding=case.padding)


@functools.lru_cache(maxsize=4)
def _results(case, dtype, memory_format, given, upstream=None):
    """(output, gradients ...) of PyTorch in a dtype and format, each (N, ...) or (C, ...)."""
    tensors = [x.detach().to(dtype, memory_format=memory_format).requires_grad_() for x in given]
    function = peer(case)
    if case.bilinear:
        function = function.to(given[0].device, dtype).requires_grad_(False)
    output = function(*tensors)
    gradients = () if upstream is None else torch.autograd.grad(output, tensors, upstream.to(dtype))
    return output.detach(), *gradients


def _judge(case, given, upstream, k):
    def judge_in(memory_format):
        def of(dtype):
            return _results(case, dtype, memory_format, given, upstream)[k]

        return value_judge(len(of(given[0].dtype)), lambda i: of(torch.float64)[i], lambda i: of(given[0].dtype)[i])

    return in_either_format(judge_in)


def checker(case, inputs):
    return _judge(case, inputs, None, 0)


def gradient_checker(case, inputs, upstream):
    judges = [_judge(case, inputs, upstream, 1 + k) for k in range(len(inputs))]
    return lambda gradients: worst(judge(gradient) for judge, gradient in zip(judges, gradients, strict=True))


def bytes(case, dtype, which):
    """What is read and what is written, once each: forward the input, the weight and the output, backward the output's
    gradient, the input, the weight, and the gradients of both."""
    x, weight, output = (math.prod(shape) for shape in (case.input, case.weight, case.output))
    forward = x + weight + output
    backward = output + weight + x if case.bilinear else output + 2 * (x + weight)
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[which] * dtype.itemsize


def flops(case, which):
    """Of the products of all channels, zero or not; backward has two such sums, or one without a weight's gradient."""
    forward = 2 * math.prod(case.weight) * case.input[0] * math.prod(case.input[2:])
    return forward * {FORWARD: 1, BACKWARD: 1 if case.bilinear else 2, BOTH: 2 if case.bilinear else 3}[which]


def memory(case, dtype, which):
    """The output, its gradient in two formats, and some in float64 for the check."""
    return math.prod(case.output) * (3 * dtype.itemsize + 4 * torch.float64.itemsize)
