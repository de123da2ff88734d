"""How much memory one call needs beyond its inputs and weights, its result included."""

import ctypes
import re
from pathlib import Path

import torch


def peak_memory(call, device):
    """Bytes, or None where they cannot be measured. Call it once before: first calls also fill caches."""
    return _peak_on_gpu(call, device) if device.type == "cuda" else _peak_resident(call)


def _peak_on_gpu(call, device):
    """What torch's allocator handed out at most, cuDNN's workspaces included."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(call):
    """How far the process grew during the call, as Linux counts its resident pages.

    Unlike torch's profiler this sees what a kernel or oneDNN allocates behind torch's back. Memory that is
    reserved but never touched does not count. Good to some 0.3 MB on a few cores, less so on very many, as each
    core counts pages in batches of its own.
    """
    try:
        # Else the call could live on pages that an earlier one freed, and seem to need none.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None
    del result
    return max(0, peak - before)


def _status(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
