"""Models of other libraries after fastseg.patch, against themselves before: images to logits."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastseg
from fastseg.bench import libraries
from fastseg.bench.channels import in_either_format
from fastseg.bench.values import value_judge

TITLE = "patched: models of other libraries after fastseg.patch (peer: the same without it, eager)"
SLOW_TO_COMPILE = True


@dataclass(frozen=True)
class Case:
    name: str
    library: str
    build: Callable
    size: tuple = (512, 512)
    quick: bool = False

    @property
    def images(self):
        return 1, 3, *self.size

    @property
    def detail(self):
        return "x".join(map(str, self.images))


def _torchvision(name):
    return Case(f"torchvision {name}", "torchvision", lambda: libraries.torchvision(name), (520, 520))


def _smp(name, **keywords):
    return Case(f"smp {name}", "segmentation_models_pytorch", lambda: libraries.smp(name, **keywords))


def _mmseg(name, head, **keywords):
    return Case(f"mmseg {name}", "mmseg", lambda: libraries.mmseg(head, **keywords))


CASES = (
    _torchvision("fcn_resnet50"),
    _torchvision("deeplabv3_resnet50"),
    _torchvision("deeplabv3_mobilenet_v3_large"),
    _smp("PSPNet"),
    _smp("DeepLabV3"),
    _mmseg("PSPNet", "PSPHead", pool_scales=(1, 2, 3, 6)),
    _mmseg("DeepLabV3", "ASPPHead", dilations=(1, 12, 24, 36)),
    _mmseg("FCN", "FCNHead", num_convs=2),
    Case("transformers UperNet", "transformers", libraries.upernet),
)


def compiles(case, which, device):
    """What patching changes is what runs without a compiler; with one, both are compiled to the same stock ops."""
    return False


def absent(case):
    return libraries.absent(case.library)


def inputs(case, device, dtype):
    return (torch.randn(case.images, generator=torch.Generator().manual_seed(1)).to(device, dtype),)


def peer(case):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return case.build()


def ours(case):
    return fastseg.patch(peer(case))


def checker(case, inputs):
    (x,) = inputs
    network = peer(case).eval().requires_grad_(False).to(x.device, x.dtype)
    truth = copy.deepcopy(network).double()(x.double())

    def judge_in(memory_format):
        own = network.to(memory_format=memory_format)(x.contiguous(memory_format=memory_format))
        return value_judge(len(x), truth.__getitem__, own.__getitem__)

    return in_either_format(judge_in)
