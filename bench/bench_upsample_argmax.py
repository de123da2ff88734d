"""upsample_argmax at the ends of the networks: logits at 1/8 of the image's size to full-size labels."""

import math

import torch
import torch.nn.functional as F

from fastseg import ops
from fastseg.bench.heads import Case, logits
from fastseg.bench.labels import label_judge

TITLE = "upsample_argmax: labels from low-resolution logits (peer: F.interpolate(...).argmax(1))"
OP = "upsample_argmax"


# In white noise no class can be pruned.
CASES = (
    Case("VOC", (1, 21, 65, 65), (513, 513)),
    Case("ADE20K", (1, 150, 60, 60), (473, 473)),
    Case("Cityscapes", (1, 19, 128, 256), (1024, 2048), quick=False),
    Case("VOC, noise", (1, 21, 65, 65), (513, 513), smooth=False, quick=False),
    Case("ADE20K, noise", (1, 150, 60, 60), (473, 473), smooth=False, quick=False),
    Case("ADE20K, batch", (16, 150, 64, 64), (512, 512), quick=False),
)


def inputs(case, device, dtype):
    return (logits(case, torch.Generator().manual_seed(0)).to(device, dtype),)


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
