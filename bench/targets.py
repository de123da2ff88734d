"""The speeds and memory this project set out for, and whether a result has them.

They hold on a CPU, in float32, with two threads. A speed-up is over the fastest peer in either layout, memory is over
the least that any peer needs; both of our layouts have to reach what is wanted. How much of a dense convolution is
executed no run need tell: the plan does.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastseg.bench import reading
from fastseg.bench.formats import markdown, pair, times
from fastseg.bench.passes import BACKWARD, BOTH, FORWARD
from fastseg.ops.atrous_conv2d_plan import axis, executed_work

SPEEDUP, MEMORY = "speed-up", "memory"
VERDICTS = MISSED, PARTLY, NOT_MEASURED, HIT = "MISSED", "MISSED in one layout", "not measured", "hit"
PEERS = ("eager", "torch.compile")
ANY_PASS = "*"


@dataclass(frozen=True)
class Target:
    bench: str
    case: str  # a pattern as a shell's, and so is the pass
    which: str
    wanted: float  # at least so much speed-up, at most so much memory
    quantity: str = SPEEDUP
    why: str = ""  # it is missed, where it is
    against: tuple = PEERS


@dataclass(frozen=True)
class Plan:
    """Three atrous branches over a batch of square maps, and at most how much of their products is to be executed."""

    batch: int
    side: int
    rates: tuple
    wanted: float


PLANS = (Plan(8, 65, (12, 24, 36), 0.66), Plan(8, 33, (6, 12, 18), 0.70))
TARGETS = (
    Target("networks", "pspnet_resnet50, ADE20K", FORWARD, 1.2),
    Target("networks", "deeplabv3_resnet50*", ANY_PASS, 0.97),
    Target("networks", "fcn_resnet50*", ANY_PASS, 0.97),
    Target("patched", "*", ANY_PASS, 1.0),
    Target("patched", "mmseg PSPNet*", ANY_PASS, 1.2),
    Target("patched", "smp PSPNet*", ANY_PASS, 1.2, why="The convolution after its pyramid is 1x1: little to save."),
    Target("patched", "transformers UperNet*", ANY_PASS, 1.2),
    Target(
        "fcn",
        "image to labels",
        FORWARD,
        1.0,
        why="Nearly all of it is VGG's convolutions, which are PyTorch's on both sides.",
    ),
    Target("aspp", "*", ANY_PASS, 0.97),
    Target("deconv2d", "FCN-32s", FORWARD, 2),
    Target("deconv2d", "FCN-16s", FORWARD, 2),
    Target(
        "deconv2d",
        "FCN-8s",
        FORWARD,
        1.8,
        why="The products alone, at this machine's matmul speed, leave 1.8x out of reach by 7 %.",
    ),
    Target("deconv2d", "FCN x2", FORWARD, 1.0, why="90 us of each call are Python."),
    Target("deconv2d", "FCN-32s, bilinear", FORWARD, 5, why="The weight's values are looked at in each call."),
    Target("pyramid_conv2d", "PSPNet 473", FORWARD, 1.8),
    Target("pyramid_conv2d", "PSPNet 473", BOTH, 1.6),
    Target("pyramid_conv2d", "PSPNet 473", FORWARD, 0.6, MEMORY),
    Target("pyramid_conv2d", "PSPNet 473", BOTH, 0.6, MEMORY),
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
    *(Target("upsample_bilinear", case, FORWARD, 1.0) for case in ("VOC", "ADE20K", "Cityscapes")),
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


def lines(result):
    """A table in Markdown: misses first, with their reasons."""
    rows = [row for target in TARGETS for row in _rows(target, result)] + [_planned(plan) for plan in PLANS]
    rows.sort(key=lambda row: VERDICTS.index(row[-2]))  # stable
    counts = [(verdict, sum(row[-2] == verdict for row in rows)) for verdict in VERDICTS]
    return [
        "; ".join(f"{verdict}: {count}" for verdict, count in counts if count) + ".",
        "",
        *markdown(("bench", "case", "pass", "wanted", "NCHW / channels_last", "", "why"), rows),
    ]


def _rows(target, result):
    """One row per case and pass that the target speaks of."""
    cases = [
        case
        for bench in result["benches"]
        if bench["name"] == target.bench
        for case in bench["cases"]
        if fnmatchcase(reading.base_name(case), target.case) and fnmatchcase(case["pass"], target.which)
    ]
    for case in cases:
        yield _row(target, reading.base_name(case), case["pass"], measured(target, case))
    if not cases:
        yield _row(target, target.case, target.which, [])


def measured(target, case):
    """The figure, or else the status, of ours in each layout; [] if there is nothing to compare."""
    peers = [peer for peer in reading.timed(case, peer=True) if peer["provider"] in target.against]
    ratio = {SPEEDUP: reading.speedup, MEMORY: reading.memory_ratio}[target.quantity]
    ours = [entry for name in reading.our_names(case)[:1] for entry in reading.by_layout(case, name)]
    figures = [entry["status"] if entry["status"] != "ok" else ratio(entry, peers) for entry in ours]
    return [] if None in figures else figures


def _row(target, case, which, figures):
    reached = [not isinstance(figure, str) and _reaches(target, figure) for figure in figures]
    verdict = NOT_MEASURED
    if reached:
        verdict = HIT if all(reached) else PARTLY if any(reached) else MISSED
    return (
        target.bench,
        case,
        "any" if which == ANY_PASS else which,
        (f"at least {target.wanted:g}x" if target.quantity == SPEEDUP else f"at most {target.wanted:g}x the memory"),
        pair([figure if isinstance(figure, str) else times(figure) for figure in figures]),
        verdict,
        (target.why or "not known") if verdict in (MISSED, PARTLY) else "",
    )


def _reaches(target, figure):
    return figure >= target.wanted if target.quantity == SPEEDUP else figure <= target.wanted


def _planned(plan):
    axes = [axis(plan.side, 3, 1, rate, rate) for rate in plan.rates]
    share = sum(executed_work(plan.batch, side, side) for side in axes) / len(axes)
    rates = "/".join(map(str, plan.rates))
    case = f"three branches, batch {plan.batch}, {plan.side}x{plan.side}, rates {rates}"
    verdict = HIT if share <= plan.wanted else MISSED
    wanted = f"at most {plan.wanted:g} of the dense work"
    return "atrous_pyramid", case, FORWARD, wanted, f"{share:.3f}, by the plan", verdict, ""
