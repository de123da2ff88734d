"""The quick cases of every bench under pytest-benchmark: `pytest bench`. A wrong kernel fails.

pytest-benchmark times one provider after the other: for ratios to publish use `fastseg bench`.
"""

import functools

import pytest
import torch

from fastseg.bench import harness
from fastseg.bench.passes import Given, label, passes_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def _quick():
    for name, bench in harness.discover().items():
        for case in harness.cases_of(bench, True, DEVICE):
            for which in passes_of(bench):
                for provider in harness.competitors(bench, case, which, DEVICE, quick=True):
                    parts = (name, label(bench, case, which), provider.name, provider.layout)
                    words = "-".join(parts).replace(", ", "_").replace(" ", "_")
                    yield pytest.param(bench, case, which, provider, id=words)


@functools.lru_cache(maxsize=1)  # the providers of a case come one after the other
def _given(bench, case):
    return Given(bench, case, DEVICE, DTYPE)


@functools.lru_cache(maxsize=1)
def _judge(given, which):
    torch._dynamo.reset()
    return given.judge(which)


@pytest.mark.parametrize("bench, case, which, provider", list(_quick()))
def test_benchmark(benchmark, bench, case, which, provider):
    if reason := harness.missing(bench):
        pytest.skip(reason)
    given = _given(bench, case)
    if reason := harness.lacking(given, which):
        pytest.skip(reason)
    judge = _judge(given, which)
    with provider.active():
        call = provider.prepare(given, which)
        wrong = judge(call()).wrong
        assert wrong is None, wrong
        benchmark.group = f"{bench.__name__}: {label(bench, case, which)}"
        benchmark(_synchronous(call))


def _synchronous(call):
    if DEVICE.type == "cpu":
        return call

    def finished():
        call()
        torch.cuda.synchronize()

    return finished
