"""Runs the declared cases: correctness first, then all providers of a case in turns, on the same inputs."""

import importlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastseg.bench import machine, memory
from fastseg.bench.clock import clock_for
from fastseg.bench.providers import providers

SCHEMA_VERSION = 1  # of the JSON: raised when a field changes its meaning


@dataclass(frozen=True)
class Effort:
    """How long to measure one case: until both the seconds and the least number of rounds are reached."""

    quick: bool
    seconds: float
    least_rounds: int
    most_rounds: int = 200


QUICK = Effort(quick=True, seconds=2, least_rounds=3)
FULL = Effort(quick=False, seconds=15, least_rounds=11)


def discover():
    """{name: module} of every bench_<name>.py in this folder, the quick ones first."""
    stems = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    found = {stem.removeprefix("bench_"): importlib.import_module(f"fastseg.bench.{stem}") for stem in stems}
    return dict(sorted(found.items(), key=lambda item: is_slow(item[1])))


def is_slow(bench):
    return getattr(bench, "SLOW_TO_COMPILE", False)


def cases_of(bench, quick):
    return [case for case in bench.CASES if case.quick or not quick]


def competitors(bench, device, quick):
    return providers(bench, device.type, compiles=not (quick and is_slow(bench)))


def run(benches, device, dtype, effort, save=lambda result: None, tell=lambda what: None):
    """Measure benches ({name: module}); return the result, a dict fit for JSON.

    save(result) is called after every case, tell(what) before every step.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # for both layouts: the peer at its best
    tell("measuring the machine")
    chosen = {name: bench for name, bench in benches.items() if missing(bench) is None}
    with_flops = any(hasattr(bench, "flops") for bench in chosen.values())
    result = {
        "schema": SCHEMA_VERSION,
        "complete": False,
        "quick": effort.quick,
        "machine": machine.describe(device),
        "ceilings": machine.ceilings(device, dtype, with_flops),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "benches": [],
    }
    for name, bench in benches.items():
        entry = {"name": name, "title": bench.TITLE, "skipped": missing(bench), "cases": []}
        result["benches"].append(entry)
        save(result)
        if name not in chosen:
            continue
        tell(f"{name}: memory, in a process of its own")
        peaks = memory.peaks_on_cpu(name, dtype, effort.quick) if device.type == "cpu" else {}
        for case in cases_of(bench, effort.quick):

            def tell_case(what, case=f"{name}, {case.name}"):
                tell(f"{case}: {what}")

            measured = measure(bench, case, device, dtype, effort, result["ceilings"], tell_case)
            for provider in measured["providers"]:
                provider.setdefault("peak_bytes", peaks.get((case.name, provider["provider"], provider["layout"])))
            entry["cases"].append(measured)
            save(result)
    result["complete"] = True
    save(result)
    return result


def missing(bench):
    return bench.missing() if hasattr(bench, "missing") else None


def measure(bench, case, device, dtype, effort, ceilings, tell=lambda what: None):
    """One case: a dict with one entry per provider."""
    torch._dynamo.reset()  # else the compilations of earlier cases count against this one's limit
    tell("inputs and their float64 truth")
    inputs = bench.inputs(case, device, dtype)
    judge = bench.checker(case, inputs)
    entries, calls = [], {}
    for provider in competitors(bench, device, effort.quick):
        tell(f"checking {provider.name}, {provider.layout}")
        entry = {"provider": provider.name, "layout": provider.layout, "peer": provider.peer}
        call, entry["status"], entry["reason"] = _check(provider, bench, case, inputs, device, dtype, judge)
        if call:
            calls[len(entries)] = (provider, call)
        entries.append(entry)
    samples = _samples(calls, entries, clock_for(device), effort, tell)
    work = {
        "bytes": bench.bytes(case, dtype) if hasattr(bench, "bytes") else None,
        "flops": bench.flops(case) if hasattr(bench, "flops") else None,
    }
    for index, seconds in samples.items():
        entries[index] |= _statistics(seconds)
    _compare(entries, work, ceilings)
    return {"name": case.name, "detail": case.detail, **work, "providers": entries}


def _check(provider, bench, case, inputs, device, dtype, judge):
    """(call, "ok", None), or (None, "wrong" or "failed", why)."""
    try:
        call = provider.prepare(bench, case, inputs, device, dtype)
        with provider.active():
            reason = judge(call())
    except Exception as error:  # a provider that cannot run (no compiler, no memory) must not end the others' run
        return None, "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return (None, "wrong", reason) if reason else (call, "ok", None)


def _samples(calls, entries, clock, effort, tell):
    """{index of the entry: seconds per call}; also fills in what is measured once per provider."""
    plan = {}
    for index, (provider, call) in calls.items():
        tell(f"warming up {provider.name}, {provider.layout}")
        with provider.active():
            plan[index] = clock.plan(call)
            entries[index]["calls_per_sample"] = plan[index][0]
            if clock.device.type == "cuda":
                entries[index]["peak_bytes"] = memory.peak_on_gpu(call, clock.device)
    samples = {index: [] for index in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    end = time.perf_counter() + effort.seconds
    for rounds in range(effort.most_rounds if calls else 0):
        if rounds >= effort.least_rounds and time.perf_counter() > end:
            break
        tell(f"round {rounds + 1}")
        shuffle(order)
        for index in order:
            provider, call = calls[index]
            with provider.active():
                calls_per_sample, turn = plan[index]
                samples[index] += [clock.sample(call, calls_per_sample) for _ in range(turn)]
    return samples


def _statistics(seconds):
    """Median, 20 and 80 % quantiles and minimum in milliseconds, and how many samples they stand for."""
    shares = torch.tensor([0.5, 0.2, 0.8, 0.0], dtype=torch.float64)
    quantiles = torch.tensor(seconds, dtype=torch.float64).mul(1e3).quantile(shares)
    return dict(zip(("median_ms", "p20_ms", "p80_ms", "min_ms"), quantiles.tolist(), strict=True)) | {"n": len(seconds)}


def _compare(entries, work, ceilings):
    """Add to each timed entry its speed-up over the best peer, its rates, and their share of the ceilings."""
    timed = [entry for entry in entries if entry["status"] == "ok"]
    best_peer = min((entry["median_ms"] for entry in timed if entry["peer"]), default=None)
    for entry in timed:
        entry["speedup"] = best_peer / entry["median_ms"] if best_peer else None
        for amount, rate, unit, ceiling in (
            ("bytes", "gb_per_s", 1e9, "copy_gb_per_s"),
            ("flops", "tflop_per_s", 1e12, "matmul_tflop_per_s"),
        ):
            known = work[amount] is not None
            entry[rate] = work[amount] / unit / (entry["median_ms"] * 1e-3) if known else None
            entry[f"{rate}_of_ceiling"] = entry[rate] / ceilings[ceiling] if known else None
