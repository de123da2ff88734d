"""Runs CUDA kernels on the CPU: README.md explains.

A test of an op's kernel, whose launch is in drivers/<op>.cpp:

    kernel = cuda_on_cpu.Kernel("<op>")

    @cuda_on_cpu.each_schedule
    def test_it(schedule):
        kernel("<function of the driver>", tensor, 3, schedule=schedule)
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import ahead
import pytest
import torch

from . import build
from .call import call


class KernelError(Exception):
    """What the stand-in, AddressSanitizer or UBSan reports about a kernel."""


class Schedule(NamedTuple):
    """One way to run a kernel: which build, and the seed of every choice of "who is next"."""

    build: str
    seed: int

    def __str__(self):
        return f"{self.build}-{self.seed}"


SEEDS = [int(seed) for seed in os.environ.get("FASTSEG_CUDA_ON_CPU_SEEDS", "0 1 2").split()]
# The memory build first: it runs in a process of its own, where a write out of bounds spoils nothing.
SCHEDULES = [Schedule("memory", SEEDS[0]), Schedule("race", SEEDS[0])] + [Schedule("plain", seed) for seed in SEEDS]

needed = pytest.mark.skipif(build.why_not() is not None, reason=f"CUDA on the CPU: {build.why_not()}")


def each_schedule(test):
    """Runs a test once per way to run a kernel, as its argument `schedule`."""
    return needed(pytest.mark.parametrize("schedule", SCHEDULES, ids=str)(test))


class Kernel(ahead.Needed):
    """The functions of drivers/<name>.cpp."""

    def __init__(self, name):
        self.name = name

    def __call__(self, function, *arguments, schedule):
        """Calls a function of the driver on dense CPU tensors, numbers and strings; tensors may be written to."""
        given = [_dense(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        library = ahead.call(build.library, self.name, schedule.build)
        job = (str(library), function, schedule.seed, given)
        error, left = _call_apart(job) if schedule.build == "memory" else call(*job)
        if error:
            raise KernelError(error)
        for tensor, after in zip((a for a in arguments if isinstance(a, torch.Tensor)), left, strict=True):
            if after:
                tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(after), dtype=torch.uint8))

    def jobs(self, item):
        """The library of the test's schedule, or all where it names none."""
        if build.why_not():
            return []
        schedule = ahead.parameters(item).get("schedule")
        return [(build.library, self.name, each) for each in ([schedule.build] if schedule else build.BUILDS)]


def _dense(tensor):
    assert tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.dim() <= 6
    data = tensor.detach().view(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data


def _call_apart(job):
    """call(*job) in a process with AddressSanitizer, which ends it at the first fault."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/job"
        with open(file, "wb") as out:
            pickle.dump(job, out)
        environment = os.environ | {
            "LD_PRELOAD": " ".join(build.sanitizer()),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        command = [sys.executable, "-S", "-E", build.HERE / "call.py", file]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            told = re.search(r"[^\n]*(runtime error|AddressSanitizer): .*", done.stderr, re.S)
            told = told[0] if told else f"{job[1]} ended with {done.returncode}\n{done.stderr}"
            raise KernelError(re.split(r"\n +#\d+ .* in ffi_", told)[0])  # without the stack frames of Python
        with open(file, "rb") as out:
            return pickle.load(out)
