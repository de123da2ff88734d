"""The JSON of a run, as `fastseg bench --json FILE` writes it: every field, and how a file is read.

FIELDS is the documentation; a test holds it against a real result. A run has benches, a bench has cases (each pass of a
case is one), a case has providers. All times are milliseconds, all amounts of memory bytes.
"""

import json
from dataclasses import dataclass

VERSION = 2  # raised when a field is added or changes its meaning
ALWAYS, MEASURED, TIMED = "always", "unless the case was skipped", 'where status is "ok"'


@dataclass(frozen=True)
class Field:
    meaning: str
    when: str = ALWAYS


class ResultError(ValueError):
    """A file that is no result, or of a schema that is not known here."""


FIELDS = {
    "run": {
        "schema": Field("version of these fields"),
        "complete": Field("false while the run goes on, and after it was killed"),
        "quick": Field("whether with --quick: fewer cases and rounds"),
        "machine": Field("object: machine"),
        "ceilings": Field("object: ceilings"),
        "device": Field('"cpu", "cuda" or "cuda:1"'),
        "dtype": Field('of the inputs, such as "float32"'),
        "benches": Field("list: bench"),
    },
    "machine": {
        "date": Field("when the run began, UTC, ISO 8601"),
        "device": Field("the processor's or GPU's name"),
        "threads": Field("that PyTorch uses on the CPU"),
        "cores": Field("of the machine"),
        "load": Field("of the machine over the last minute when the run began, or null"),
        "fastseg": Field("version"),
        "commit": Field("short hash, + if files differed from it; null for an installed package"),
        "torch": Field("version"),
        "triton": Field("version or null"),
        "cudnn": Field("version or null"),
        "driver": Field("NVIDIA's version or null"),
        "tf32": Field("whether PyTorch's matrix products may use TF32; null on a CPU"),
        "tf32_conv": Field("whether PyTorch's convolutions may use TF32; null on a CPU"),
    },
    "ceilings": {
        "copy_gb_per_s": Field("of a large copy, read plus write"),
        "matmul_tflop_per_s": Field("of a large matrix product in the run's dtype; null if no bench counts flops"),
    },
    "bench": {
        "name": Field("bench_<name>.py"),
        "title": Field("one line: what is measured, and against what"),
        "skipped": Field("why this machine cannot run it, or null"),
        "cases": Field("list: case"),
    },
    "case": {
        "name": Field('unique within the bench; where that has passes, it ends with ", <pass>"'),
        "pass": Field('"forward", "backward", "both", "training step" ...: passes.py says what each does'),
        "detail": Field("shapes"),
        "skipped": Field("why it was not measured, or null"),
        "providers": Field("list: provider"),
        "bytes": Field("that any implementation must read and write at least, or null", MEASURED),
        "flops": Field("of the straightforward algorithm, a multiply-add counting 2, or null", MEASURED),
        "executed_flops": Field("of ours, where kernels leave some out, else null", MEASURED),
        "seconds": Field("that measuring took, checks and warming up included"),
    },
    "provider": {
        "provider": Field('"eager" and "torch.compile" are the peers; ours are "fastseg" or "fastseg <backend>"'),
        "layout": Field('memory format of inputs and weights: "NCHW" or "channels_last"'),
        "peer": Field("whether it is stock PyTorch"),
        "status": Field('"ok", "wrong" (its result is) or "failed" (it raised an error)'),
        "reason": Field("why it is not ok, or null"),
        "error": Field(
            "relative L2 error against float64, of label maps the share of labels that differ from float64's argmax; "
            "null where the result is no such thing"
        ),
        "peak_bytes": Field("memory of one call beyond its inputs and weights, its result included, or null"),
        "calls_per_sample": Field("over which one sample is the mean", TIMED),
        "median_ms": Field("of the samples of one call", TIMED),
        "p20_ms": Field("20 % quantile", TIMED),
        "p80_ms": Field("80 % quantile", TIMED),
        "min_ms": Field("the fastest sample", TIMED),
        "n": Field("how many samples", TIMED),
        "speedup": Field("median of the best peer in either layout over this median; null without a peer", TIMED),
        "gb_per_s": Field("bytes over the median, or null", TIMED),
        "gb_per_s_of_ceiling": Field("share of copy_gb_per_s, or null", TIMED),
        "tflop_per_s": Field("effective: flops over the median, or null", TIMED),
        "tflop_per_s_of_ceiling": Field("share of matmul_tflop_per_s, or null", TIMED),
        "executed_tflop_per_s": Field("of ours: executed_flops over the median, or null", TIMED),
        "executed_tflop_per_s_of_ceiling": Field("share of matmul_tflop_per_s, or null", TIMED),
    },
}


def read(path):
    """The result in a file, with null for every field that a skipped case or an untimed provider lacks.

    Raises ResultError, which names the file, for what is not readable.
    """
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path} is no JSON: {error}") from error
    version = result.get("schema") if isinstance(result, dict) else None
    if not isinstance(version, int):
        raise ResultError(f'{path} is no result of fastseg bench: it has no number as "schema"')
    if "profile" in result:
        raise ResultError(f"{path} is a profile, no result of fastseg bench")
    if version != VERSION:
        raise ResultError(f"{path} has schema {version}, this fastseg reads {VERSION}: another version wrote it")
    try:
        return filled(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def filled(result):
    """The result itself, where every documented field is there."""
    for kind, thing in _parts(result):
        for name in FIELDS[kind]:
            thing.setdefault(name, None)
    return result


def departures(result):
    """Where a result is not as documented, one line each; for tests."""
    said = []
    for kind, thing in _parts(result):
        known = FIELDS[kind]
        said += [f"{kind} has {name}, which is not documented" for name in thing.keys() - known.keys()]
        given = {ALWAYS: True, MEASURED: not thing.get("skipped"), TIMED: thing.get("status") == "ok"}
        said += [f"{kind} lacks {name}" for name, field in known.items() if given[field.when] and name not in thing]
    return said


def _parts(result):
    """(kind, object) of all objects of a result."""
    yield "run", result
    yield "machine", result["machine"]
    yield "ceilings", result["ceilings"]
    for bench in result["benches"]:
        yield "bench", bench
        for case in bench["cases"]:
            yield "case", case
            for provider in case["providers"]:
                yield "provider", provider
