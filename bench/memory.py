"""How much memory one call needs beyond its inputs and weights, its result included: gradients too, and in a step
of training what forward keeps for backward.

On a GPU: what torch's allocator handed out at most, cuDNN's workspaces included.

On a CPU: how far the process grew, as Linux counts its resident pages. Unlike torch's profiler this sees what a kernel
or oneDNN allocates behind torch's back. What glibc keeps of freed memory would blur it, so it is measured in a process
of its own in which every block from 64 KB on comes from the system and goes back to it; such a process is slower, so
nothing is timed in it. Memory that is reserved but never touched does not count. Good to some 0.3 MB on a few cores,
less so on very many, as each core counts pages in batches of its own.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import torch

from fastseg.bench.passes import label

EVERY_BLOCK_TO_THE_SYSTEM = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # glibc, mallopt(3)


def peak_on_gpu(call, device):
    """Bytes. Call it once before: first calls also fill caches."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class CpuProcess:
    """The process that measures one bench after another; a context manager. What dies, for want of memory say, takes
    only its bench's figures along: a new process measures the next."""

    def __init__(self, dtype, quick):
        self.arguments = [str(dtype).removeprefix("torch."), "quick" if quick else "full"]
        self.process = None

    def peaks(self, name):
        """{(case, provider, layout): bytes} of bench_<name>; {} where it cannot be measured."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._started()
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
            return {tuple(key): peak for key, peak in json.loads(self.process.stdout.readline())}
        except (OSError, ValueError):
            self.process.kill()
            self.process.wait()
            return {}

    def _started(self):
        environment = {**os.environ, **EVERY_BLOCK_TO_THE_SYSTEM, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "fastseg.bench.memory", *self.arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def growth(call):
    """Bytes by which the process grew during the call. Raises OSError where the system does not tell."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _main(dtype, effort):
    """Reads names of benches and prints the peaks of each as one line of JSON."""
    from fastseg.bench import harness

    benches, names = harness.discover(), queue.SimpleQueue()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else prints, libraries in C and processes of compilers too, must not be taken for an answer
    threading.Thread(target=_listen, args=(names,), daemon=True).start()
    while True:
        peaks = _peaks(harness, benches[names.get()], getattr(torch, dtype), effort == "quick")
        print(json.dumps(peaks), file=answers, flush=True)


def _listen(names):
    """Ends the process with the one that asks it, were that killed, and not only after the bench at hand."""
    for name in sys.stdin:
        names.put(name.strip())
    os._exit(0)


def _peaks(harness, bench, dtype, quick):
    """[((case, provider, layout), bytes)]. What fails here fails again, and is told, where it is timed."""
    device, peaks = torch.device("cpu"), []
    for given, which in harness.work(bench, device, dtype, quick):
        if harness.lacking(given, which):
            continue
        case = label(bench, given.case, which)
        for provider in harness.competitors(bench, given.case, which, device, quick):
            try:
                with provider.active():
                    call = provider.prepare(given, which)
                    call()
                    peaks.append(((case, provider.name, provider.layout), growth(call)))
            except Exception as error:
                print(f"{case}, {provider.name}: {error}")
    return peaks


if __name__ == "__main__":
    _main(*sys.argv[1:])
