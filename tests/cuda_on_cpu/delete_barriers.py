"""Deletes each barrier and each copy wait of each CUDA kernel, one at a time, and says whether its test notices.

    python tests/cuda_on_cpu/delete_barriers.py [op ...]

The kernels are those of drivers/<op>.cpp with a test_<op>.py here. Ends with 1 if a deletion goes unnoticed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILDS = ("plain", "race", "memory")
BARRIER = re.compile(r"(__syncthreads|__syncwarp|(?:fastseg::)?cp_async_wait<[^;]*>)\([^;]*\);")


def failures(op, csrc):
    """{build: the line that tells most} of the op's test on the kernels in csrc; empty if it passes."""
    environment = os.environ | {"FASTSEG_CUDA_ON_CPU_CSRC": str(csrc), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-rN", "-p", "no:cacheprovider"]
    found = {}
    for build in BUILDS:
        done = subprocess.run(
            [*command, "-x", "-k", f"{build}-", HERE / f"test_{op}.py"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):  # not a failed test, but trouble of another kind
            sys.exit(done.stdout + done.stderr)
        if done.returncode:
            lines = [
                line
                for line in done.stdout.splitlines()
                if re.search(r"Error: |(runtime error|AddressSanitizer): ", line)
            ]
            found[build] = lines[-1].split("Error: ", 1)[-1].strip()[:200] if lines else "fails"
    return found


def barriers(op):
    """(file, its text, match) of each, in the op's own files and those of tiles that they include."""
    folder = ROOT / "csrc/cuda"
    own = sorted(folder.glob(f"{op}*.cuh"))
    included = "".join(path.read_text() for path in own)
    tiles = [path for path in sorted(folder.glob("tile_*.h")) if f'"cuda/{path.name}"' in included]
    for kernel in own + tiles:
        text = kernel.read_text()
        for barrier in BARRIER.finditer(text):
            yield kernel, text, barrier


def main(ops):
    tested = [
        path.stem for path in sorted((HERE / "drivers").glob("*.cpp")) if (HERE / f"test_{path.stem}.py").exists()
    ]
    caught = deleted = 0
    for op in ops or tested:
        with tempfile.TemporaryDirectory() as work:
            csrc = Path(work, "csrc")
            shutil.copytree(ROOT / "csrc", csrc)
            if found := failures(op, csrc):
                sys.exit(f"{op}: the test fails before anything is deleted: {found}")
            for kernel, text, barrier in barriers(op):
                changed = csrc / "cuda" / kernel.name
                changed.write_text(text[: barrier.start()] + ";" + text[barrier.end() :])
                found = failures(op, csrc)
                changed.write_text(text)
                deleted += 1
                caught += bool(found)
                line = text.count("\n", 0, barrier.start()) + 1
                print(f"{kernel.relative_to(ROOT)}:{line}  {barrier[0]}  {'caught' if found else 'NOT caught'}")
                for build, told in found.items():
                    print(f"    {build:8}{told}", flush=True)
    print(f"{caught} of {deleted} caught")
    return caught != deleted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
