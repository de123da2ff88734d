"""The one command for a GPU, as far as it can be tried without one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastseg import dispatch
from fastseg.bench import gpu

ROOT = Path(__file__).parent.parent


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine with a GPU, all its kernels and compute-sanitizer, as far as questions go."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(dispatch, "missing", lambda name, backend, device: None)
    monkeypatch.setattr(dispatch, "backends", lambda name, device: ["native", "triton", "reference"])
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: f"/bin/{tool}")


def test_every_kernel_meets_every_sanitizer(a_gpu):
    names = [name for name, _, _ in gpu.steps(Path("out"))]
    assert names[0] == "tests" and names[-1] == "bench"
    wanted = {
        f"{tool} {op} {backend}" for tool in gpu.SANITIZERS for op in gpu.rooms() for backend in ("native", "triton")
    }
    assert set(names[1:-1]) == wanted


def test_the_case_for_the_sanitizers_exists(a_gpu):
    """The -k expression selects tests of each room; "cpu" stands in for the GPU that is not here."""
    cases = {f"tests/test_{name}.py": gpu.first_case(name) for name in gpu.rooms()}
    chosen = " or ".join(f"({case} and reference and cpu)" for case in cases.values())
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *cases, "-k", chosen]
    said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    for file, case in cases.items():
        assert [line for line in said if line.startswith(file) and f"[{case}-" in line and "reference-cpu]" in line]


def test_a_missing_kernel_ends_it_before_it_begins(a_gpu, tmp_path, monkeypatch):
    """Or a run without the kernels that it is for would look well."""
    monkeypatch.setattr(dispatch, "missing", lambda name, backend, device: "not built" if backend == "native" else None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no native kernel here: not built"):
        gpu.main()


def test_a_step_that_takes_too_long_ends_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STEP_LIMIT", 1)
    log = tmp_path / "step.log"
    ended = gpu.run("slow", ["bash", "-c", "sleep 60 & echo $!; wait"], {}, log)
    assert ended["code"] == "timed out"
    child = int(log.read_text())
    deadline = time.monotonic() + 10
    while is_running(child):  # a killed process takes a moment to go
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_failed_step_does_not_end_the_run(a_gpu, tmp_path, monkeypatch, capsys):
    planned = [
        ("good", [sys.executable, "-c", "print('fine')"], {}),
        ("bad", [sys.executable, "-c", "import os; print(os.environ['HOW']); raise SystemExit(3)"], {"HOW": "badly"}),
        ("after", [sys.executable, "-c", "print('still here')"], {}),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out: planned)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    ended = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert [(step["step"], step["code"], step["last_line"]) for step in ended] == [
        ("good", 0, "fine"),
        ("bad", 3, "badly"),
        ("after", 0, "still here"),
    ]
    assert "2 of 3 steps ended well; bad" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no GPU is visible to torch"):
        gpu.main()
