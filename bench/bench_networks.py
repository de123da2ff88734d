"""Whole networks, image to labels, against torchvision's with the same weights."""

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastseg import models
from fastseg.bench.labels import label_judge
from fastseg.bench.vision import torchvision_segmentation

TITLE = "networks: image to labels (peer: torchvision's network, then argmax(1))"
SLOW_TO_COMPILE = True


@dataclass(frozen=True)
class Case:
    name: str
    size: tuple = (520, 520)  # what torchvision evaluates at
    quick: bool = False

    @property
    def network(self):
        return self.name.split(",")[0]

    @property
    def images(self):
        return 1, 3, *self.size

    @property
    def detail(self):
        return "x".join(map(str, self.images))


CASES = (
    Case("deeplabv3_resnet50", quick=True),
    Case("deeplabv3_resnet50, VOC", (513, 513)),
    Case("deeplabv3_resnet50, Cityscapes", (1024, 2048)),
    Case("fcn_resnet50"),
)
CLASSES = 21  # of VOC


def missing():
    return None if importlib.util.find_spec("torchvision") else "the peer, torchvision, is not installed"


class Labels(torch.nn.Module):
    """torchvision's network followed by argmax."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)["out"].argmax(1)


class Predict(torch.nn.Module):
    """Our network's predict() as a forward()."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.predict(x)


def _torchvision(case):
    """Random weights, the same at every call. No auxiliary head: predict() does not run ours either."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        build = getattr(torchvision_segmentation(), case.network)
        network = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)
    return network.eval().requires_grad_(False)


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(1)
    return (torch.randn(case.images, generator=random).to(device, dtype),)


def ours(case):
    network = getattr(models, case.network)(num_classes=CLASSES, aux_loss=False)
    network.load_state_dict(_torchvision(case).state_dict())
    return Predict(network)


def peer(case):
    return Labels(_torchvision(case))


def checker(case, inputs):
    (x,) = inputs
    own = _torchvision(case).to(x.device, x.dtype)(x)["out"][0]
    exact = _torchvision(case).to(x.device).double()(x.double())["out"][0]
    return label_judge(1, lambda i: exact, lambda i: own)


@functools.cache
def flops(case):
    """Of torchvision's network, counted on the meta device; padding counts like pixels."""
    with FlopCounterMode(display=False) as counter:
        _torchvision(case).to("meta")(torch.empty(case.images, device="meta"))
    return counter.get_total_flops()
