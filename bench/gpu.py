"""Everything a GPU is wanted for, in one command: `python -m fastseg.bench.gpu --out DIR`, from a checkout, offline.

The test suite on the GPU; compute-sanitizer's memcheck and racecheck on small cases of each kernel, where the tool
is there; then the benches. Each step leaves its log and the next one runs whatever came before; run.json says how each
ended and is written after every step, so that a killed run keeps what it has.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from fastseg import dispatch

SANITIZERS = ("memcheck", "racecheck")
STEP_LIMIT = 3600  # seconds


def steps(out):
    """[(name, command, extra environment)] in the order they run."""
    pytest = [sys.executable, "-m", "pytest", "-q"]
    found = [("tests", pytest, {})]
    if shutil.which("compute-sanitizer"):
        for name in rooms():
            for backend in set(dispatch.backends(name, "cuda")) & {"native", "triton"}:
                # The first case of the op's test and those named after it, on this backend.
                one = [
                    *pytest,
                    f"tests/test_{name}.py",
                    "-k",
                    f"{first_case(name)} and {backend} and cuda",
                ]
                for tool in SANITIZERS:
                    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *one]
                    # torch's caching allocator would hide what lies beyond a tensor.
                    found.append((f"{tool} {name} {backend}", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    bench = [sys.executable, "-m", "fastseg", "bench", "--json", str(out / "bench.json")]
    return [*found, ("bench", bench, {})]


def rooms():
    """The ops that others, their gradients, share a room with: each has the room's name."""
    return list(dict.fromkeys(map(dispatch.room, dispatch.ops())))


def first_case(name):
    """The name of the first entry of CASES in an op's test, read from its text: importing it would want pytest."""
    text = Path(f"tests/test_{name}.py").read_text()
    return re.search(r"^CASES = \{\n\s+\"(.+?)\"", text, re.M)[1]


def run(name, command, extra, log):
    """How one step ended, as a dict."""
    begin = time.perf_counter()
    with log.open("w") as output:
        # A session of its own: what a tool such as compute-sanitizer started ends with it and does not stay on the GPU.
        step = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **extra}, start_new_session=True
        )
        try:
            code = step.wait(timeout=STEP_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(step.pid, signal.SIGKILL)
            step.wait()
            code = "timed out"
    text = log.read_text(errors="replace")  # a killed step may end within a character
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    seconds = round(time.perf_counter() - begin, 1)
    return {"step": name, "code": code, "seconds": seconds, "last_line": last, "log": log.name}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where logs and JSON go")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("fastseg.bench.gpu: no GPU is visible to torch")
    if not Path("tests/conftest.py").exists():
        sys.exit("fastseg.bench.gpu: run it where fastseg's tests/ is")
    for name in dispatch.ops():
        for backend in ("native", "triton"):
            reason = dispatch.missing(name, backend, "cuda")
            if reason and not dispatch.not_written(name, backend, "cuda"):
                sys.exit(f"fastseg.bench.gpu: {name} has no {backend} kernel here: {reason}")
    out.mkdir(parents=True, exist_ok=True)
    ended = []
    for number, (name, command, extra) in enumerate(steps(out)):
        print(f"{name} ...", flush=True)
        ended.append(run(name, command, extra, out / f"{number:02}_{name.replace(' ', '_')}.log"))
        print("  code {code}, {seconds} s: {last_line}".format(**ended[-1]), flush=True)
        (out / "run.json").write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "steps": ended}, indent=1))
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not on PATH: its steps were left out")
    failed = [step["step"] for step in ended if step["code"] != 0]
    print(f"{len(ended) - len(failed)} of {len(ended)} steps ended well", *failed, sep="; ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
