"""What the figures were measured on, and the two ceilings they are compared with."""

import math
import os
import re
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import fastseg
from fastseg.bench.clock import clock_for
from fastseg.info import cpu_name, version

CEILING_SECONDS = 1


def describe(device):
    """Device, versions and settings that a time depends on, as a dict fit for JSON."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "fastseg": fastseg.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        "tf32_conv": torch.backends.cudnn.allow_tf32 if cuda else None,
    }


def ceilings(device, dtype, with_flops):
    """GB/s of a large copy (read plus write) and TFLOP/s of a large matrix product."""
    clock = clock_for(device)
    big = 2**30 if device.type == "cuda" else 2**28  # bytes: far more than any cache
    source = torch.empty(big // 4, device=device).uniform_()
    target = torch.empty_like(source)
    copy = _best(clock, lambda: target.copy_(source))
    measured = {"copy_gb_per_s": 2 * big / copy / 1e9, "matmul_tflop_per_s": None}
    if with_flops:
        side = 8192 if device.type == "cuda" else 1536
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        measured["matmul_tflop_per_s"] = 2 * side**3 / _best(clock, lambda: a @ b) / 1e12
    return measured


def free_memory(device):
    """Bytes that a process can still get; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        (available,) = re.findall(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except (OSError, ValueError):
        return None
    return min(1024 * int(available), _left_to_container())


def _left_to_container():
    """What the control group of a container leaves; inf without a limit."""
    try:
        limit, used = (Path("/sys/fs/cgroup", f"memory.{what}").read_text() for what in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # not such a system, or "max"
        return math.inf


def _best(clock, call):
    """Seconds; tried for a while, as a ceiling measured in a busy moment would be none."""
    clock.plan(call)
    end = time.perf_counter() + CEILING_SECONDS
    best = math.inf
    while time.perf_counter() < end:
        best = min(best, clock.sample(call, 1))
    return best


def _commit():
    """The short hash of a source checkout, with + if files differ from it; None for an installed package."""
    root = Path(fastseg.__file__).parent.parent
    if not (root / ".git").exists() or not (root / "setup.py").exists():
        return None
    commit = _said("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    return commit and commit + ("+" if _said("git", "-C", str(root), "status", "--porcelain") else "")


def _said(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().partition("\n")[0] or None
