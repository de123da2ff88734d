"""Whole networks, image to labels, against plain PyTorch with the same weights: torchvision's, or written out here."""

import functools
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastseg import models
from fastseg.bench.labels import label_judge
from fastseg.bench.vision import torchvision_segmentation

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
    Case("deeplabv3_resnet50", quick=True),
    Case("deeplabv3_resnet50, VOC", (513, 513)),
    Case("deeplabv3_resnet50, Cityscapes", (1024, 2048)),
    Case("fcn_resnet50"),
    Case("pspnet_resnet50, ADE20K", (473, 473)),  # what its authors train at
    Case("pspnet_resnet50, Cityscapes", (713, 713)),
)
CLASSES = 21  # of VOC


def missing():
    return None if importlib.util.find_spec("torchvision") else "the peer, torchvision, is not installed"


class Labels(torch.nn.Module):
    """A network followed by argmax."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)["out"].argmax(1)


class ConcatenatingPSPNet(torch.nn.Module):
    """Our PSPNet's layers, with the pyramid as the paper draws it: pooled, upsampled and concatenated."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        net, size = self.network, x.shape[2:]
        x = net.layer4(net.layer3(net.layer2(net.layer1(net.layer0(x)))))
        priors = [
            branch(F.adaptive_avg_pool2d(x, bin)) for bin, branch in zip(net.ppm.bins, net.ppm.features, strict=True)
        ]
        x = torch.cat([x, *(self.upsampled(prior, x.shape[2:]) for prior in priors)], 1)
        convolution, *layers = net.cls
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=convolution.padding)
        for layer in layers:
            x = layer(x)
        return {"out": self.upsampled(x, size)}

    def upsampled(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.network.align_corners)


class Predict(torch.nn.Module):
    """Our network's predict() as a forward()."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.predict(x)


def _plain(case):
    """Random weights, the same at every call. No auxiliary head: predict() does not run ours either."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if case.network.startswith("pspnet"):
            network = ConcatenatingPSPNet(getattr(models, case.network)(num_classes=CLASSES, aux_loss=False))
        else:
            build = getattr(torchvision_segmentation(), case.network)
            network = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)
    return network.eval().requires_grad_(False)


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(1)
    return (torch.randn(case.images, generator=random).to(device, dtype),)


def ours(case):
    plain = _plain(case)
    if isinstance(plain, ConcatenatingPSPNet):
        return Predict(plain.network)
    network = getattr(models, case.network)(num_classes=CLASSES, aux_loss=False)
    network.load_state_dict(plain.state_dict())
    return Predict(network)


def peer(case):
    return Labels(_plain(case))


def checker(case, inputs):
    (x,) = inputs
    own = _plain(case).to(x.device, x.dtype)(x)["out"][0]
    exact = _plain(case).to(x.device).double()(x.double())["out"][0]
    return label_judge(1, lambda i: exact, lambda i: own)


@functools.cache
def flops(case):
    """Of the plain network, counted on the meta device; padding counts like pixels."""
    with FlopCounterMode(display=False) as counter:
        _plain(case).to("meta")(torch.empty(case.images, device="meta"))
    return counter.get_total_flops()
