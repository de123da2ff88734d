"""How much memory one call needs beyond its inputs and weights, its result included."""

import ctypes
import re
from pathlib import Path

import torch

# glibc's mallopt(3) parameters. A freed block at least this large goes back to the system at once ...
M_MMAP_THRESHOLD, EVERY_TENSOR = -3, 2**16
# ... and these are the limits that its own adaption settles at, under which calls are timed.
USUAL_THRESHOLD, M_TRIM_THRESHOLD, USUAL_TRIM = 2**25, -1, 2**26


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
        libc = ctypes.CDLL(None)
        # Else the call lives partly on pages that earlier ones freed, and how many is chance.
        libc.mallopt(M_MMAP_THRESHOLD, EVERY_TENSOR)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
        libc.mallopt(M_MMAP_THRESHOLD, USUAL_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None
    del result
    return max(0, peak - before)


def _status(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
