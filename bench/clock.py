"""Seconds of one call, on the CPU and on a GPU."""

import math
import time

import torch

SHORTEST_SAMPLE = 500e-6  # seconds: well above what the operating system's clock and Python's loop can blur
TURN = 20e-3  # seconds: a short call gives several samples per turn, so that one preemption is an outlier
MOST_PER_TURN = 8


class CpuClock:
    device = torch.device("cpu")

    def plan(self, call):
        """(calls per sample, samples per turn)."""
        seconds = self.sample(call, 1)
        if seconds < TURN:  # the first may have met cold caches
            seconds = min(seconds, self.sample(call, 1), self.sample(call, 1))
        calls = math.ceil(SHORTEST_SAMPLE / seconds)
        return calls, min(MOST_PER_TURN, math.ceil(TURN / (calls * seconds)))

    def sample(self, call, count):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count


class CudaClock:
    """Device time between two events on the current stream, with a cold L2 cache.

    A call is never batched: only the first of a batch would find the cache cold. Events resolve 0.5 us.
    """

    WARM_UP = 3  # calls: cuDNN picks its algorithm in the first one, and the clock rates rise
    SWEEPS = 8  # one clears the cache; the others keep the GPU busy while Python launches the call being timed

    def __init__(self, device):
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.sweep = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def plan(self, call):
        """(calls per sample, samples per turn)."""
        for _ in range(self.WARM_UP):
            call()
        torch.cuda.synchronize(self.device)
        return 1, MOST_PER_TURN

    def sample(self, call, count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        for _ in range(self.SWEEPS):
            self.sweep.fill_(1)
        begin.record(stream)
        for _ in range(count):
            call()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / count


def clock_for(device):
    return CudaClock(device) if device.type == "cuda" else CpuClock()
