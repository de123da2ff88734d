"""The ends of the networks: shapes of logits at 1/8 of the image's size, and random logits and targets like theirs."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg.bench.passes import FORWARD

IGNORED = 255
OBJECT = 6  # low-resolution pixels: about the width of an object


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple  # (N, C, h, w)
    size: tuple  # (H, W)
    smooth: bool = True  # like a network's logits; else white noise
    quick: bool = True

    @property
    def detail(self):
        return "x".join(map(str, self.shape)) + " -> " + "x".join(map(str, self.size))

    @property
    def full_shape(self):
        return (*self.shape[:2], *self.size)


# What training and inference meet.
CASES = (
    Case("VOC", (1, 21, 65, 65), (513, 513)),
    Case("ADE20K", (1, 150, 60, 60), (473, 473)),
    Case("ADE20K, 512", (1, 150, 64, 64), (512, 512), quick=False),
    Case("ADE20K, batch 4", (4, 150, 64, 64), (512, 512), quick=False),
    Case("ADE20K, batch 16", (16, 150, 64, 64), (512, 512), quick=False),
    Case("Cityscapes", (1, 19, 128, 256), (1024, 2048), quick=False),
)


def compiles(case, which, device):
    """On a CPU torch.compile takes the gradient of F.interpolate several times as slowly as eager PyTorch does. Single
    images show that; a call for a batch of 16 takes a minute."""
    return device.type == "cuda" or which == FORWARD or case.shape[0] == 1


def fits(case, device):
    """On a CPU the gradient of a batch of 16 takes PyTorch half a minute."""
    return device.type != "cpu" or case.shape[0] <= 4


def logits(case, random):
    """float32 (N, C, h, w): objects some OBJECT pixels wide, with a little noise on top."""
    noise = torch.randn(case.shape, generator=random)
    if not case.smooth:
        return noise
    return 6 * F.interpolate(_blobs(case, case.shape[1], random), case.shape[2:], mode="bicubic") + 0.3 * noise


def targets(case, random):
    """int64 (N, H, W): objects as wide as those of the logits, and some 5 % of the pixels, in patches, IGNORED."""
    labels = torch.empty((case.shape[0], *case.size), dtype=torch.int64)
    blobs, voids = _blobs(case, case.shape[1], random), _blobs(case, 1, random)
    for label, blob, void in zip(labels, blobs, voids, strict=True):  # one image at a time is held with all classes
        label.copy_(F.interpolate(blob[None], case.size, mode="bilinear").argmax(1)[0])
        void = F.interpolate(void[None], case.size, mode="bicubic")[0, 0]
        label[void > void.quantile(0.95)] = IGNORED
    return labels


def _blobs(case, channels, random):
    n, _, h, w = case.shape
    return torch.randn(n, channels, math.ceil(h / OBJECT), math.ceil(w / OBJECT), generator=random)
