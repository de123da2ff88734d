"""Where the time of whole networks goes: `python -m fastseg.bench.profile [NETWORK ...] [--json FILE]`.

Two tasks of each network, with random weights and images: from images to labels (`predict`), and a training step
(forward, loss and backward, no optimiser). torch.profiler times every operation; rows are the time by place in the
network, pass and kind of operation (profile_events.py) and add up to the total. Calls without the profiler take turns
with those under it and say what it costs. Shown is the fastest profiled call.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fastseg import models
from fastseg.bench import machine
from fastseg.bench.profile_events import rows
from fastseg.bench.profile_places import recorded
from fastseg.bench.profile_report import markdown
from fastseg.nn import AuxiliaryLoss, UpsampleCrossEntropyLoss

__all__ = ["markdown", "run"]

SCHEMA_VERSION = 1  # of the JSON, which is not that of `fastseg bench`
CLASSES = 21
REPEATS = 5
LABELS, STEP = "labels", "training step"
WHOLE = "the whole call"  # its range in a profile


@dataclass(frozen=True)
class Case:
    network: str
    task: str
    images: tuple  # (N, 3, H, W)


# Labels at the sizes of bench_networks and bench_fcn; steps small enough for a CPU.
CASES = tuple(
    Case(network, task, (batch, 3, side, side))
    for network, label_side, step_side in (
        ("fcn8s_vgg16", 500, 250),
        ("fcn_resnet50", 520, 257),
        ("pspnet_resnet50", 473, 257),
        ("deeplabv3_resnet50", 520, 257),
    )
    for task, batch, side in ((LABELS, 1, label_side), (STEP, 2, step_side))
)


def call_of(case, device, dtype):
    """(network, function without arguments) of a task, in the memory format that is fastest for it."""
    torch.manual_seed(0)
    network = getattr(models, case.network)(num_classes=CLASSES)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name.startswith(("score", "upscore")):  # trained ones are not zero or bilinear
            torch.nn.init.normal_(parameter, std=0.05)
    network = network.to(device, dtype).train(case.task == STEP)
    images = torch.randn(case.images).to(device, dtype)
    if case.task == LABELS:
        return network, lambda: network.predict(images)
    network, images = (x.to(memory_format=torch.channels_last) for x in (network, images))
    target = torch.randint(CLASSES, (case.images[0], *case.images[2:]), device=device)
    criterion = AuxiliaryLoss(UpsampleCrossEntropyLoss(align_corners=getattr(network, "align_corners", False)))
    small = {"upsample": False} if isinstance(network, models.PSPNet | models.Segmenter) else {}

    def step():
        criterion(network(images, **small), target).backward()

    return network, step


def run(cases, device, dtype, repeats=REPEATS, save=lambda result: None, tell=lambda what: None):
    """Profile the cases; return the result, a dict fit for JSON. save(result) is called after every case."""
    tell("measuring the machine")
    result = {
        "schema": SCHEMA_VERSION,
        "profile": True,
        "complete": False,
        "machine": machine.describe(device),
        "ceilings": machine.ceilings(device, dtype, with_flops=True),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "cases": [],
    }
    for case in cases:
        name = f"{case.network}, {case.task}"
        tell(f"{name}: building")
        network, call = call_of(case, device, dtype)
        measured = measure(network, call, device, dtype, repeats, lambda what, name=name: tell(f"{name}: {what}"))
        result["cases"].append({"network": case.network, "task": case.task, "images": case.images, **measured})
        save(result)
        del network, call
    result["complete"] = True
    save(result)
    return result


def measure(network, call, device, dtype, repeats=REPEATS, tell=lambda what: None):
    """Time of a call and where it goes: {"ms", "all_ms", "unprofiled_ms", "rows"}, ms of the fastest profiled call."""
    tell("warming up")
    _timed(network, call, device)
    best, profiled, unprofiled = None, [], []
    for repeat in range(repeats):
        tell(f"round {repeat + 1} of {repeats}")
        unprofiled.append(_timed(network, call, device))
        milliseconds, events = _profiled(network, call, device)
        profiled.append(milliseconds)
        if milliseconds == min(profiled):
            best = events
    tell("sorting operations")
    return {
        "ms": min(profiled),
        "all_ms": profiled,
        "unprofiled_ms": min(unprofiled),
        "rows": rows(best, min(profiled) * 1e3, dtype),
    }


def _run(call, device):
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(network, call, device):
    network.zero_grad()
    begin = time.perf_counter()
    _run(call, device)
    return (time.perf_counter() - begin) * 1e3


def _profiled(network, call, device):
    """(milliseconds, events)."""
    network.zero_grad()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with recorded(network), profile(activities=activities, record_shapes=True) as profiler, record_function(WHOLE):
        _run(call, device)
    events = profiler.events()
    (whole,) = (e for e in events if e.name == WHOLE and e.device_type == torch.autograd.DeviceType.CPU)
    return whole.cpu_time_total / 1e3, events


def main():
    from fastseg.bench.profile_report import Screen

    names = list(dict.fromkeys(case.network for case in CASES))
    parser = argparse.ArgumentParser(prog="fastseg.bench.profile", description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="*", metavar="NETWORK", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results; updated after every case")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="default: %(default)s")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.network if name not in names]:
        parser.error(f"no profile of {', '.join(unknown)}; there are: {', '.join(names)}")
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases = [case for case in CASES if case.network in (arguments.network or names)]
    with Screen(arguments.json) as screen:
        run(cases, device, dtype, arguments.repeats, save=screen.update, tell=screen.tell)


if __name__ == "__main__":
    sys.exit(main())
