"""upsample_argmax at the ends of the networks: logits at 1/8 of the image's size to full-size labels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.labels import label_judge

TITLE = "upsample_argmax: labels from low-resolution logits (peer: F.interpolate(...).argmax(1))"
OP = "upsample_argmax"


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple  # (N, C, h, w)
    size: tuple  # (H, W)
    smooth: bool = True  # like a network's logits; else white noise, where no class can be pruned
    quick: bool = True

    @property
    def detail(self):
        return "x".join(map(str, self.shape)) + " -> " + "x".join(map(str, self.size))


CASES = (
    Case("VOC", (1, 21, 65, 65), (513, 513)),
    Case("ADE20K", (1, 150, 60, 60), (473, 473)),
    Case("Cityscapes", (1, 19, 128, 256), (1024, 2048)),
    Case("VOC, noise", (1, 21, 65, 65), (513, 513), smooth=False, quick=False),
    Case("ADE20K, noise", (1, 150, 60, 60), (473, 473), smooth=False),
    Case("ADE20K, batch", (16, 150, 64, 64), (512, 512), quick=False),
)


def inputs(case, device, dtype):
    """Smooth logits: objects some 6 pixels wide, with a little noise on top."""
    random = torch.Generator().manual_seed(0)
    n, c, h, w = case.shape
    logits = torch.randn(case.shape, generator=random)
    if case.smooth:
        blobs = torch.randn(n, c, math.ceil(h / 6), math.ceil(w / 6), generator=random)
        logits = 6 * F.interpolate(blobs, (h, w), mode="bicubic") + 0.3 * logits
    return (logits.to(device, dtype),)


def ours(case):
    return lambda x: ops.upsample_argmax(x, case.size)


def peer(case):
    return lambda x: F.interpolate(x, case.size, mode="bilinear").argmax(1)


def checker(case, inputs):
    (x,) = inputs

    def own(i):
        return F.interpolate(x[i : i + 1], case.size, mode="bilinear")[0]

    def exact(i):
        return F.interpolate(x[i : i + 1].double(), case.size, mode="bilinear")[0]

    return label_judge(len(x), exact, own)


def bytes(case, dtype):
    """Logits read once, one-byte labels written once."""
    return math.prod(case.shape) * dtype.itemsize + case.shape[0] * math.prod(case.size)
