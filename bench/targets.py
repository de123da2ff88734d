"""The speeds and memory this project set out for; targets_met.py tells whether a run has them.

They hold on a CPU, in float32, with two threads. A speed-up is over the fastest peer in either layout, unless said
otherwise, memory is over the least that any peer needs; both of our layouts have to reach what is wanted. How much of
a dense convolution is executed no run need tell: the plan does.
"""

from dataclasses import dataclass

from fastseg.bench.passes import BACKWARD, BOTH, FORWARD

SPEEDUP, MEMORY = "speed-up", "memory"
ANY_PASS = "*"


@dataclass(frozen=True)
class Target:
    bench: str
    case: str  # a pattern as a shell's, and so is the pass
    which: str
    wanted: float  # at least so much speed-up, at most so much memory
    quantity: str = SPEEDUP
    why: str = ""  # it is missed, where it is
    same_layout: bool = False  # against peers in the layout of ours only: a module in a model that stays as it is


@dataclass(frozen=True)
class Plan:
    """Three atrous branches over a batch of square maps, and at most how much of their products is to be executed."""

    batch: int
    side: int
    rates: tuple
    wanted: float


LEANEST = "The leanest peer is so in the other memory format; against that of its own format ours is below."
BY_PYTORCH = "All of its convolutions are PyTorch's on both sides: what is left is noise."
TO_CHANNELS_LAST = "In NCHW ours is as fast as eager; torch.compile computes in channels_last, and fuses ReLU."
COMPILED = "torch.compile fuses ReLU and sums into the convolutions (NEXT.md, 2); eager PyTorch is slower than ours."
PLANS = (Plan(8, 65, (12, 24, 36), 0.66), Plan(8, 33, (6, 12, 18), 0.70))
TARGETS = (
    Target("networks", "pspnet_resnet50, ADE20K", FORWARD, 1.2),
    Target("networks", "deeplabv3_resnet50*", ANY_PASS, 0.97, why=COMPILED),
    Target("networks", "fcn_resnet50*", ANY_PASS, 0.97, why=COMPILED),
    Target(
        "training",
        "*",
        ANY_PASS,
        0.97,
        why="All but the loss is PyTorch's there: against eager in the same format, the noise of the runs.",
    ),
    Target("patched", "*", ANY_PASS, 1.0, same_layout=True, why=BY_PYTORCH),
    Target("patched", "mmseg PSPNet", ANY_PASS, 1.2, same_layout=True),
    Target(
        "patched",
        "smp PSPNet",
        ANY_PASS,
        1.2,
        same_layout=True,
        why="The convolution after its pyramid is 1x1: little to save.",
    ),
    Target(
        "patched",
        "transformers UperNet",
        ANY_PASS,
        1.2,
        same_layout=True,
        why="Its pyramid is at output stride 32; the 3x3 convolution over 2048 channels at stride 4 takes most.",
    ),
    Target(
        "fcn",
        "image to labels",
        FORWARD,
        1.0,
        why="Nearly all of it is VGG's convolutions, which are PyTorch's on both sides, fewer of them in ours.",
    ),
    Target("aspp", "*", ANY_PASS, 0.97, same_layout=True, why=TO_CHANNELS_LAST),
    Target("deconv2d", "FCN-32s", FORWARD, 2),
    Target(
        "deconv2d",
        "FCN-16s",
        FORWARD,
        2,
        why="Called alone it takes 4.1 ms in both formats; why more in turns with its peers is not known.",
    ),
    Target(
        "deconv2d",
        "FCN-8s",
        FORWARD,
        1.8,
        why="The products alone, at the speed of a large matrix product, take most of the time that 1.8x would leave.",
    ),
    Target("deconv2d", "FCN x2", FORWARD, 1.0, why="90 us of each call are Python."),
    Target("deconv2d", "FCN-32s, bilinear", FORWARD, 5, why="The weight's values are looked at in each call."),
    Target("pyramid_conv2d", "PSPNet 473", FORWARD, 1.8),
    Target("pyramid_conv2d", "PSPNet 473", BOTH, 1.6),
    Target("pyramid_conv2d", "PSPNet 473", FORWARD, 0.6, MEMORY, why=LEANEST),
    Target("pyramid_conv2d", "PSPNet 473", BOTH, 0.6, MEMORY, why=LEANEST),
    Target(
        "pyramid_pool",
        "PSPNet 473",
        FORWARD,
        3,
        why="Reading the input once, at the speed of a copy, is the bound; in NCHW torch.compile fuses the bins too.",
    ),
    Target("pyramid_pool", "PSPNet 473", BACKWARD, 2),
    Target("upsample_argmax", "VOC", FORWARD, 25),
    Target("upsample_argmax", "ADE20K", FORWARD, 40),
    Target("upsample_argmax", "Cityscapes", FORWARD, 18),
    Target("upsample_argmax", "VOC, noise", FORWARD, 2.5),
    Target("upsample_argmax", "ADE20K, noise", FORWARD, 2.5),
    *(
        Target("upsample_bilinear", case, FORWARD, 1.0, why="Within the noise: torch.compile's is as fast there.")
        for case in ("VOC", "ADE20K", "Cityscapes")
    ),
    *(Target("upsample_bilinear", case, BACKWARD, 1.5) for case in ("VOC", "ADE20K", "Cityscapes")),
    Target("upsample_cross_entropy", "VOC", BOTH, 8),
    Target("upsample_cross_entropy", "ADE20K", BOTH, 25),
    Target("upsample_cross_entropy", "Cityscapes", BOTH, 12),
    Target(
        "upsample_cross_entropy",
        "ADE20K",
        BOTH,
        1 / 20,
        MEMORY,
        why="Ours keeps the logits four times at their low resolution, torch.compile's loss once at full size.",
    ),
)


def apply(result):
    """Whether the targets are for what this result was measured on."""
    return (result["device"], result["dtype"], result["machine"]["threads"]) == ("cpu", "float32", 2)
