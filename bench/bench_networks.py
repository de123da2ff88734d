"""Whole networks, image to labels, against plain PyTorch with the same weights: torchvision's, or written out here."""

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastseg.bench import stock
from fastseg.bench.labels import label_judge

TITLE = "networks: image to labels (peer: torchvision's network, or PSPNet with its concatenation; then argmax(1))"
SLOW_TO_COMPILE = True


@dataclass(frozen=True)
class Case:
    name: str  # "network", or "network, images"
    size: tuple = (520, 520)  # what torchvision evaluates at
    quick: bool = False

    @property
    def images(self):
        return 1, 3, *self.size

    @property
    def network(self):
        return self.name.split(",")[0]

    @property
    def detail(self):
        return "x".join(map(str, self.images))


CASES = (
    Case("deeplabv3_resnet50, 321", (321, 321), quick=True),  # the first DeepLab's crop
    Case("deeplabv3_resnet50"),
    Case("deeplabv3_resnet50, VOC", (513, 513)),
    Case("deeplabv3_resnet50, Cityscapes", (1024, 2048)),
    Case("fcn_resnet50"),
    Case("pspnet_resnet50, ADE20K", (473, 473)),  # what its authors train at
    Case("pspnet_resnet50, Cityscapes", (713, 713)),
)


def fits(case, device):
    """On a CPU an image of Cityscapes takes PyTorch 15 seconds, and eight times as many in float64."""
    return device.type != "cpu" or case.size[0] < 1024


def missing():
    return None if importlib.util.find_spec("torchvision") else "the peer, torchvision, is not installed"


class Labels(torch.nn.Module):
    """A network followed by argmax."""

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


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(1)
    return (torch.randn(case.images, generator=random).to(device, dtype),)


def _stock(case):
    """No auxiliary head: predict() does not run ours either."""
    return stock.stock(case.network, aux_loss=False).eval().requires_grad_(False)


def ours(case):
    return Predict(stock.ours(case.network, aux_loss=False))


def peer(case):
    return Labels(_stock(case))


def checker(case, inputs):
    (x,) = inputs
    own = _stock(case).to(x.device, x.dtype)(x)["out"][0]
    exact = _stock(case).to(x.device).double()(x.double())["out"][0]
    return label_judge(1, lambda i: exact, lambda i: own)


@functools.cache
def flops(case):
    """Of the plain network, counted on the meta device; padding counts like pixels."""
    with FlopCounterMode(display=False) as counter:
        _stock(case).to("meta")(torch.empty(case.images, device="meta"))
    return counter.get_total_flops()
