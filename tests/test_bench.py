"""The harness: what gets a number, what the numbers mean, and what is left of a run that dies."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import torch

from fastseg import cli
from fastseg.bench import harness, memory, report
from fastseg.bench.labels import label_judge

CPU = torch.device("cpu")
BRIEF = harness.Effort(quick=True, seconds=0, least_rounds=3)


@dataclass(frozen=True)
class Case:
    name: str = "small"
    detail: str = "1x2x8x8"
    quick: bool = True


def fake_bench(ours=lambda x: x * 2, cases=(Case(),), **more):
    """A bench of doubling a tensor; torch.compile is left out to be quick."""
    return types.SimpleNamespace(
        TITLE="doubling",
        CASES=cases,
        SLOW_TO_COMPILE=True,
        inputs=lambda case, device, dtype: (torch.ones(1, 2, 8, 8, device=device, dtype=dtype),),
        ours=lambda case: ours,
        peer=lambda case: lambda x: x + x,
        checker=lambda case, inputs: lambda y: None if torch.equal(y, 2 * inputs[0]) else "not the double",
        **more,
    )


def run(bench, **callbacks):
    return harness.run({"double": bench}, CPU, torch.float32, BRIEF, **callbacks)


@pytest.fixture(autouse=True)
def cheap_measurements(monkeypatch):
    """No ceilings, and no process of its own for memory, which could not import a bench made here."""
    found = {"copy_gb_per_s": 10.0, "matmul_tflop_per_s": 0.1}
    monkeypatch.setattr(harness.machine, "ceilings", lambda device, dtype, with_flops: found)
    peaks = {("small", name, layout): 12e6 for name in ("eager", "fastseg") for layout in ("NCHW", "channels_last")}
    monkeypatch.setattr(harness.memory, "peaks_on_cpu", lambda name, dtype, quick: peaks)


def entries(result, ours):
    (case,) = result["benches"][0]["cases"]
    return [entry for entry in case["providers"] if entry["peer"] is not ours]


def test_every_provider_is_timed_in_both_layouts():
    result = run(fake_bench())
    timed = [(e["provider"], e["layout"], e["status"]) for e in result["benches"][0]["cases"][0]["providers"]]
    layouts = ("NCHW", "channels_last")
    assert timed == [(name, layout, "ok") for name in ("eager", "fastseg") for layout in layouts]
    assert all(e["peak_bytes"] == 12e6 for e in entries(result, ours=True))
    assert all(e["p20_ms"] <= e["median_ms"] <= e["p80_ms"] and e["n"] >= 3 for e in entries(result, ours=True))


@pytest.mark.parametrize(
    "ours, status, reason",
    [
        (lambda x: x * 3, "wrong", "not the double"),
        (lambda x: x.no_such_method(), "failed", "AttributeError: 'Tensor' object has no attribute"),
    ],
)
def test_a_wrong_or_broken_provider_gets_no_number(ours, status, reason):
    result = run(fake_bench(ours))
    for entry in entries(result, ours=True):
        assert entry["status"] == status and entry["reason"].startswith(reason)
        assert "median_ms" not in entry and "speedup" not in entry
    assert all(entry["status"] == "ok" for entry in entries(result, ours=False))
    assert reason in "\n".join(report.remarks(result["benches"][0]))


def test_ratios_rates_and_shares():
    timed = [{"status": "ok", "peer": peer, "median_ms": ms} for peer, ms in ((True, 4.0), (True, 2.0), (False, 0.5))]
    ceilings = {"copy_gb_per_s": 8.0, "matmul_tflop_per_s": 0.04}
    harness._compare([*timed, {"status": "wrong"}], {"bytes": 2e6, "flops": 1e10}, ceilings)
    assert [entry["speedup"] for entry in timed] == [0.5, 1.0, 4.0]
    assert timed[2]["gb_per_s"] == pytest.approx(4.0)
    assert timed[2]["gb_per_s_of_ceiling"] == pytest.approx(0.5)
    assert timed[2]["tflop_per_s"] == pytest.approx(20)
    assert timed[2]["tflop_per_s_of_ceiling"] == pytest.approx(500)


def test_without_a_working_peer_there_is_no_ratio():
    alone = [{"status": "ok", "peer": False, "median_ms": 1.0}]
    harness._compare(alone, {"bytes": None, "flops": None}, {})
    assert alone[0]["speedup"] is None


def test_a_killed_run_keeps_what_was_measured(tmp_path):
    path = tmp_path / "run.json"
    bench = fake_bench(cases=(Case("first"), Case("second"), Case("never, not quick", quick=False)))

    def killed(what):
        if "second" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench, save=lambda result: report.write_json(result, path), tell=killed)
    kept = json.loads(path.read_text())
    assert kept["schema"] == harness.SCHEMA_VERSION and kept["complete"] is False
    assert [case["name"] for case in kept["benches"][0]["cases"]] == ["first"]
    assert kept["machine"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == [path]


def test_a_bench_that_cannot_run_says_why():
    result = run(fake_bench(missing=lambda: "no peer here"))
    assert result["complete"] and result["benches"][0]["cases"] == []
    assert report.remarks(result["benches"][0]) == ["doubling: skipped, no peer here"]


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["no_such_op"], "no bench named no_such_op; there are: "),
        (["--device", "toaster"], "--device must be cpu, cuda or cuda:<number>, got 'toaster'"),
        (["--json", "no/such/folder/run.json"], "cannot write no/such/folder/run.json"),
    ],
)
def test_bad_arguments_are_one_line(arguments, line, capsys):
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "--plot", "picture.png"]) == 2
    assert capsys.readouterr().err == 'fastseg: bench needs rich and matplotlib: pip install "fastseg[cli]"\n'


def test_the_command(tmp_path, monkeypatch, capsys):
    """From the command line to table, JSON and picture; a wrong kernel of ours is exit code 1."""
    monkeypatch.setattr(harness, "QUICK", BRIEF)
    files = {kind: tmp_path / f"run.{kind}" for kind in ("json", "png")}
    options = ["--quick", "--device", "cpu", "--json", str(files["json"]), "--plot", str(files["png"])]
    for ours, code in ((lambda x: 2 * x, 0), (lambda x: x, 1)):
        monkeypatch.setattr(harness, "discover", lambda ours=ours: {"double": fake_bench(ours)})
        assert cli.main(["bench", *options]) == code
        assert json.loads(files["json"].read_text())["complete"] is True
        assert files["png"].read_bytes().startswith(b"\x89PNG\r\n")
    said = capsys.readouterr().out
    assert "channels_last" in said and "peak MB" in said and "…" not in said
    assert "small, fastseg, NCHW: wrong: not the double" in said


def test_peak_memory_of_a_known_call():
    """Upsampled logits in float32 and their argmax in int64 live at the same time."""
    code = """
import torch, torch.nn.functional as F
from fastseg.bench.memory import growth
x = torch.randn(1, 21, 65, 65)
call = lambda: F.interpolate(x, (513, 513), mode="bilinear").argmax(1)
call()
print(growth(call))
"""
    environment = {**os.environ, **memory.EVERY_BLOCK_TO_THE_SYSTEM, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "OSError" in done.stderr:
        pytest.skip("this system does not say how much memory a process uses")
    assert int(done.stdout) == pytest.approx((21 * 4 + 8) * 513 * 513, rel=0.02)


def test_labels_may_differ_only_by_rounding():
    exact = torch.tensor([[[1.0, 3.0]], [[1.0 + 1e-6, 2.0]]], dtype=torch.float64)  # (C, H, W) of one image
    judge = label_judge(1, lambda i: exact, lambda i: exact + 1e-6)
    assert judge(torch.tensor([[[1, 0]]])) is None
    assert judge(torch.tensor([[[0, 0]]], dtype=torch.uint8)) is None  # a tie to within rounding
    assert "1 labels of image 0 off by up to 1" in judge(torch.tensor([[[1, 1]]]))
    assert "there are 2 classes" in judge(torch.tensor([[[2, 0]]]))
    assert "shape (1, 2)" in judge(torch.tensor([[1, 0]]))
