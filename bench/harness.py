"""Runs the declared cases: correctness first, then all providers of a case in turns, on the same inputs."""

import importlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastseg.bench import machine, memory, schema
from fastseg.bench.clock import clock_for
from fastseg.bench.passes import FORWARD, Given, declared, label, passes_of
from fastseg.bench.providers import providers


@dataclass(frozen=True)
class Effort:
    """How long to measure one pass of a case: until both the seconds and the least number of rounds are reached.

    Where calls are so slow that this takes longer than `patience`, FEWEST_ROUNDS do.
    """

    quick: bool
    seconds: float
    least_rounds: int
    most_rounds: int = 200
    patience: float = 20


QUICK = Effort(quick=True, seconds=0.5, least_rounds=3)
FULL = Effort(quick=False, seconds=3, least_rounds=9)
FEWEST_ROUNDS = 3
RATES = (
    ("gb_per_s", "bytes", 1e9, "copy_gb_per_s"),
    ("tflop_per_s", "flops", 1e12, "matmul_tflop_per_s"),
    ("executed_tflop_per_s", "executed_flops", 1e12, "matmul_tflop_per_s"),  # of ours; what peers skip is not known
)


def discover():
    """{name: module} of every bench_<name>.py in this folder, the quick ones first."""
    stems = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    found = {stem.removeprefix("bench_"): importlib.import_module(f"fastseg.bench.{stem}") for stem in stems}
    return dict(sorted(found.items(), key=lambda item: is_slow(item[1])))


def is_slow(bench):
    return getattr(bench, "SLOW_TO_COMPILE", False)


def cases_of(bench, quick, device):
    cases = [case for case in bench.CASES if case.quick or not quick]
    return [case for case in cases if bench.fits(case, device)] if hasattr(bench, "fits") else cases


def work(bench, device, dtype, quick):
    """(Given, pass) of everything to measure."""
    for case in cases_of(bench, quick, device):
        given = Given(bench, case, device, dtype)
        for which in passes_of(bench):
            torch._dynamo.reset()  # else earlier compilations serve another pass, or count against this one's limit
            yield given, which


def competitors(bench, case, which, device, quick):
    """The providers. A quick run compiles no gradients: that takes longer than all it then measures."""
    compiles = bench.compiles(case, which, device) if hasattr(bench, "compiles") else True
    if quick:
        compiles = compiles and which == FORWARD and not is_slow(bench)
    return providers(bench, device.type, compiles)


def lacking(given, which):
    """What this machine lacks for one pass of a case, a package or memory; or None."""
    if hasattr(given.bench, "absent") and (absent := given.bench.absent(given.case)):
        return absent
    wanted = declared(given.bench, "memory", given.case, given.dtype, which=which) or 0
    free = machine.free_memory(given.device)
    if free is None or wanted <= free:
        return None
    return f"PyTorch needs some {wanted / 1e9:.0f} GB of memory for it, and {free / 1e9:.1f} GB are free"


def run(benches, device, dtype, effort, save=lambda result: None, tell=lambda what: None):
    """Measure benches ({name: module}); return the result, a dict fit for JSON.

    save(result) is called after every case, tell(what) before every step.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # for both layouts: the peer at its best
    tell("measuring the machine")
    skipped = {name: why_skipped(bench, effort.quick, device) for name, bench in benches.items()}
    with_flops = any(hasattr(bench, "flops") for name, bench in benches.items() if not skipped[name])
    result = {
        "schema": schema.VERSION,
        "complete": False,
        "quick": effort.quick,
        "machine": machine.describe(device),
        "ceilings": machine.ceilings(device, dtype, with_flops),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "benches": [],
    }
    with memory.CpuProcess(dtype, effort.quick) as apart:
        for name, bench in benches.items():
            entry = {"name": name, "title": bench.TITLE, "skipped": skipped[name], "cases": []}
            result["benches"].append(entry)
            save(result)
            if skipped[name]:
                continue
            tell(f"{name}: memory, in a process of its own")
            peaks = apart.peaks(name) if device.type == "cpu" else {}
            for given, which in work(bench, device, dtype, effort.quick):
                entry["cases"].append(_case(name, given, which, effort, result["ceilings"], peaks, tell))
                save(result)
    result["complete"] = True
    save(result)
    return result


def _case(name, given, which, effort, ceilings, peaks, tell):
    """One pass of a case, as it goes into the JSON."""
    begin, case, skipped = time.perf_counter(), label(given.bench, given.case, which), lacking(given, which)
    measured = {"name": case, "pass": which, "detail": given.case.detail, "skipped": skipped, "providers": []}
    if not skipped:
        measured |= measure(given, which, effort, ceilings, lambda what: tell(f"{name}, {case}: {what}"))
    for provider in measured["providers"]:
        peak = peaks.get((case, provider["provider"], provider["layout"])) if provider["status"] == "ok" else None
        provider.setdefault("peak_bytes", peak)
    return measured | {"seconds": time.perf_counter() - begin}


def why_skipped(bench, quick, device):
    """Why nothing of a bench is measured, or None."""
    return missing(bench) or (None if cases_of(bench, quick, device) else f"no {'quick ' if quick else ''}case for it")


def missing(bench):
    return bench.missing() if hasattr(bench, "missing") else None


def measure(given, which, effort, ceilings, tell=lambda what: None):
    """One pass of a case: what its calls have to do, and one entry per provider."""
    tell("inputs and their float64 truth")
    try:
        judge = given.judge(which)
    except Exception as error:  # float64 takes the most memory of all
        return {"skipped": f"its check failed: {_said(error)}"}
    entries, calls = [], {}
    for provider in competitors(given.bench, given.case, which, given.device, effort.quick):
        tell(f"checking {provider.name}, {provider.layout}")
        call, found = _check(provider, given, which, judge)
        if found["status"] == "ok":
            calls[len(entries)] = (provider, call)
        entries.append({"provider": provider.name, "layout": provider.layout, "peer": provider.peer, **found})
    samples = _samples(calls, entries, clock_for(given.device), effort, tell)
    amounts = {
        "bytes": declared(given.bench, "bytes", given.case, given.dtype, which=which),
        "flops": declared(given.bench, "flops", given.case, which=which),
        "executed_flops": declared(given.bench, "executed_flops", given.case, which=which),
    }
    for index, seconds in samples.items():
        entries[index] |= _statistics(seconds)
    _compare(entries, amounts, ceilings)
    return {**amounts, "providers": entries}


def _check(provider, given, which, judge):
    """(call, what is known of it: status "ok", "wrong" or "failed", the reason unless ok, and the error)."""
    try:
        with provider.active():
            call = provider.prepare(given, which)
            verdict = judge(call())
    except Exception as error:  # a provider that cannot run (no compiler, no memory) must not end the others' run
        return None, {"status": "failed", "reason": _said(error), "error": None}
    return call, {"status": "wrong" if verdict.wrong else "ok", "reason": verdict.wrong, "error": verdict.error}


def _said(error):
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


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
    begin = time.perf_counter()
    for rounds in range(effort.most_rounds if calls else 0):
        spent = time.perf_counter() - begin
        if rounds >= (effort.least_rounds if spent < effort.patience else FEWEST_ROUNDS) and spent > effort.seconds:
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


def _compare(entries, amounts, ceilings):
    """Add to each timed entry its speed-up over the best peer, its rates, and their share of the ceilings."""
    timed = [entry for entry in entries if entry["status"] == "ok"]
    best_peer = min((entry["median_ms"] for entry in timed if entry["peer"]), default=None)
    for entry in timed:
        entry["speedup"] = best_peer / entry["median_ms"] if best_peer else None
        for rate, amount, unit, ceiling in RATES:
            known = amounts.get(amount) is not None and not (entry["peer"] and amount == "executed_flops")
            entry[rate] = amounts[amount] / unit / (entry["median_ms"] * 1e-3) if known else None
            entry[f"{rate}_of_ceiling"] = entry[rate] / ceilings[ceiling] if known else None
