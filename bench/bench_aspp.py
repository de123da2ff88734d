"""ASPP as a module, as it labels: branches, the image's mean, projection; against torchvision's with its weights."""

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastseg import nn
from fastseg.bench.channels import in_either_format
from fastseg.bench.values import value_judge
from fastseg.bench.vision import torchvision_segmentation

TITLE = "nn.ASPP in eval mode: features to features (peer: torchvision's ASPP)"
SLOW_TO_COMPILE = True
CHANNELS = 2048


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    side: int
    rates: tuple
    quick: bool = False

    @property
    def shape(self):
        return self.batch, CHANNELS, self.side, self.side

    @property
    def detail(self):
        return "x".join(map(str, self.shape)) + f", rates {self.rates}"


CASES = (
    Case("513, stride 16", 1, 33, (6, 12, 18), quick=True),
    Case("513, stride 8", 1, 65, (12, 24, 36)),
    Case("513, stride 8, batch 8", 8, 65, (12, 24, 36)),
)


def missing():
    return None if importlib.util.find_spec("torchvision") else "the peer, torchvision, is not installed"


def fits(case, device):
    return device.type != "cpu" or case.batch == 1


def inputs(case, device, dtype):
    """As after a ReLU."""
    return (torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).relu().to(device, dtype),)


def peer(case):
    """Random weights, the same at every call."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        aspp = torchvision_segmentation().deeplabv3.ASPP(CHANNELS, list(case.rates))
    return aspp.eval().requires_grad_(False)


def ours(case):
    aspp = nn.ASPP(CHANNELS, case.rates)
    aspp.load_state_dict(peer(case).state_dict())
    return aspp.eval().requires_grad_(False)


def checker(case, inputs):
    (x,) = inputs

    def judge_in(memory_format):
        @functools.cache
        def of(dtype):
            with torch.no_grad():
                aspp = peer(case).to(x.device, dtype, memory_format=memory_format)
                return aspp(x.to(dtype, memory_format=memory_format))

        return value_judge(len(x), lambda i: of(torch.float64)[i], lambda i: of(x.dtype)[i])

    return in_either_format(judge_in)


@functools.cache
def flops(case):
    """Of torchvision's module, counted on the meta device; padding counts like pixels."""
    with FlopCounterMode(display=False) as counter:
        peer(case).to("meta")(torch.empty(case.shape, device="meta"))
    return counter.get_total_flops()
