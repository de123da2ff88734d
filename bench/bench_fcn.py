"""FCN-8s on VGG16 at 500 x 500, image to labels and its tail alone, against the same layers in stock PyTorch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import models
from fastseg.bench.labels import label_judge

TITLE = "FCN-8s-VGG16: image to labels (peer: the same layers and nn.ConvTranspose2d, then argmax(1))"
SLOW_TO_COMPILE = True
SIDES = (500, 500)  # of a PASCAL VOC image
MAPS = {"drop7": (4096, 16), "pool4": (512, 44), "pool3": (256, 88)}  # name: channels, side, of such an image


@dataclass(frozen=True)
class Case:
    name: str
    shapes: tuple
    detail: str
    quick: bool = False


IMAGE = Case("image to labels", ((1, 3, *SIDES),), "1x3x500x500")
TAIL = Case("the tail", tuple((1, c, side, side) for c, side in MAPS.values()), "maps of fc7, pool4, pool3")
CASES = (IMAGE, TAIL)


class Stock(torch.nn.Module):
    """From an image, or from the three maps, to logits, with the crops of the paper's FCN-8s."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        if len(inputs) == 1:
            maps = self.network.maps(*inputs)
            inputs = [maps[name] for name in MAPS]
        fc7, pool4, pool3 = inputs
        x = self._up(self.network.score_fr(fc7), "upscore2")
        x = x + self.network.score_pool4(pool4)[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        x = self._up(x, "upscore_pool4")
        x = x + self.network.score_pool3(pool3)[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
        return self._up(x, "upscore8")[:, :, 31 : 31 + SIDES[0], 31 : 31 + SIDES[1]]

    def _up(self, x, name):
        layer = getattr(self.network, name)
        return F.conv_transpose2d(x, layer.weight, stride=layer.stride)


class StockLabels(Stock):
    def forward(self, *inputs):
        return super().forward(*inputs).argmax(1)


class Ours(torch.nn.Module):
    """predict() as a forward(), or the part of it after the maps."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        if len(inputs) == 1:
            return self.network.predict(*inputs)
        return self.network.labels(self.network.scores(dict(zip(MAPS, inputs, strict=True))), SIDES)


def _network():
    """Random weights, the same at every call; the last deconvolution is bilinear, those before it were trained."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = models.fcn8s_vgg16(num_classes=21)
        for name, parameter in network.named_parameters():
            if name.startswith(("score", "upscore2", "upscore_pool4")):
                torch.nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=random).to(device, dtype) for shape in case.shapes)


def ours(case):
    return Ours(_network())


def peer(case):
    return StockLabels(_network())


def checker(case, inputs):
    network = Stock(_network()).to(inputs[0].device)
    own = network.to(inputs[0].dtype)(*inputs)[0]
    exact = network.double()(*(x.double() for x in inputs))[0]
    return label_judge(1, lambda i: exact, lambda i: own)
