"""The quick cases of every bench under pytest-benchmark: `pytest bench`. A wrong kernel fails.

pytest-benchmark times one provider after the other: for ratios to publish use `fastseg bench`.
"""

import functools

import pytest
import torch

from fastseg.bench import harness
from fastseg.bench.providers import providers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def _quick():
    for name, bench in harness.discover().items():
        for case in harness.cases_of(bench, quick=True):
            for provider in providers(bench, DEVICE.type, compiles=not harness.is_slow(bench)):
                label = f"{name}-{case.name}-{provider.name}-{provider.layout}".replace(", ", "_").replace(" ", "_")
                yield pytest.param(bench, case, provider, id=label)


@functools.lru_cache(maxsize=1)  # the providers of a case come one after the other
def _inputs_and_judge(bench, case):
    torch._dynamo.reset()
    inputs = bench.inputs(case, DEVICE, DTYPE)
    return inputs, bench.checker(case, inputs)


@pytest.mark.parametrize("bench, case, provider", list(_quick()))
def test_benchmark(benchmark, bench, case, provider):
    if reason := harness.missing(bench):
        pytest.skip(reason)
    inputs, judge = _inputs_and_judge(bench, case)
    call = provider.prepare(bench, case, inputs, DEVICE, DTYPE)
    with provider.active():
        reason = judge(call())
        assert reason is None, reason
        benchmark.group = case.name
        benchmark(_synchronous(call))


def _synchronous(call):
    if DEVICE.type == "cpu":
        return call

    def finished():
        call()
        torch.cuda.synchronize()

    return finished
