"""The harness: what gets a number, what the numbers mean, and what is left of a run that dies."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import cli
from fastseg.bench import (
    bench_atrous_conv2d,
    bench_atrous_pyramid,
    bench_patched,
    bench_training,
    bench_upsample_bilinear,
    bench_upsample_cross_entropy,
    harness,
    heads,
    memory,
    report,
    schema,
)
from fastseg.bench.labels import label_judge
from fastseg.bench.passes import Given
from fastseg.bench.providers import Provider, providers
from fastseg.bench.values import value_judge
from fastseg.bench.verdict import Verdict

CPU = torch.device("cpu")
PEAKS = memory.CpuProcess.peaks
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
        checker=lambda case, inputs: (
            lambda y: Verdict(0.25, None if torch.equal(y, 2 * inputs[0]) else "not the double")
        ),
        **more,
    )


class Doubled(torch.autograd.Function):
    """Twice the input, with a gradient of `slope`."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return ctx.slope * grad, None


def differentiable_bench(slope=2, **more):
    return fake_bench(
        ours=lambda x: Doubled.apply(x, slope),
        PASSES=("forward", "backward", "both"),
        upstream=lambda case, device, dtype: torch.full((1, 2, 8, 8), 3.0, device=device, dtype=dtype),
        gradient_checker=lambda case, inputs, upstream: (
            lambda grads: Verdict(0.5, None if [g.unique().item() for g in grads] == [6] else "wrong gradient")
        ),
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
    monkeypatch.setattr(harness.memory.CpuProcess, "peaks", lambda self, name: peaks)


def entries(result, ours):
    (case,) = result["benches"][0]["cases"]
    return [entry for entry in case["providers"] if entry["peer"] is not ours]


def test_every_provider_is_timed_in_both_layouts():
    result = run(fake_bench())
    timed = [(e["provider"], e["layout"], e["status"]) for e in result["benches"][0]["cases"][0]["providers"]]
    layouts = ("NCHW", "channels_last")
    assert timed == [(name, layout, "ok") for name in ("eager", "fastseg") for layout in layouts]
    assert all(e["peak_bytes"] == 12e6 and e["error"] == 0.25 for e in entries(result, ours=True))
    assert result["benches"][0]["cases"][0]["seconds"] > 0
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


@pytest.mark.parametrize("slope, statuses", [(2, ["ok"] * 3), (5, ["ok", "wrong", "wrong"])])
def test_each_pass_is_checked_and_timed(slope, statuses):
    """A wrong gradient gets no number, and a right output keeps its own."""
    work = {"forward": 1, "backward": 2, "both": 3}
    result = run(differentiable_bench(slope, bytes=lambda case, dtype, which: work[which]))
    cases = result["benches"][0]["cases"]
    assert {case["pass"]: case["bytes"] for case in cases} == work
    assert [case["name"] for case in cases] == ["small, forward", "small, backward", "small, both"]
    for case, status in zip(cases, statuses, strict=True):
        ours = [entry for entry in case["providers"] if not entry["peer"]]
        assert len(ours) == 2 and all(entry["status"] == status for entry in ours)
        assert all(("median_ms" in entry) is (status == "ok") for entry in ours)
        assert all(entry["status"] == "ok" for entry in case["providers"] if entry["peer"])
    assert ("small, both, fastseg, NCHW: wrong: wrong gradient" in report.remarks(result["benches"][0])) is (slope == 5)


def test_a_training_step_starts_from_scratch():
    """Repeats give the same gradients, nothing is left on the inputs, and backward alone runs without the output."""
    bench = differentiable_bench()
    given = Given(bench, bench.CASES[0], CPU, torch.float32)
    for provider in providers(bench, "cpu", compiles=False):
        both, backward = (provider.prepare(given, which) for which in ("both", "backward"))
        for _ in range(3):
            output, gradients = both()
            assert (
                torch.equal(output, torch.full_like(output, 2.0)) and given.judge("backward")(gradients).wrong is None
            )
            assert given.judge("backward")(backward()).wrong is None
        (leaf,) = both.args[1]
        assert leaf.requires_grad and leaf.grad is None and not given.inputs[0].requires_grad


def test_a_training_step_of_a_network():
    """Parameters get gradients, the network is in training mode, and its check is of both loss and gradients."""

    class Network(torch.nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.weight, self.slope = torch.nn.Parameter(torch.full((2, 3, 1, 1), 3.0)), slope

        def forward(self, x):
            assert self.training
            return F.conv2d(x, self.weight).mean() + (self.slope - 1) * (self.weight - self.weight.detach()).sum()

    def judge(result):
        loss, (gradient,) = result
        right = loss.item() == 9 and (gradient == 0.5).all()
        return Verdict(0.0, None if right else "wrong step")

    bench = fake_bench(PASSES=("training step",))
    bench.inputs = lambda case, device, dtype: (torch.ones(1, 3, 4, 4),)
    bench.ours, bench.peer = lambda case: Network(2), lambda case: Network(1)
    bench.checker = lambda case, inputs: judge
    (case,) = run(bench)["benches"][0]["cases"]
    assert case["pass"] == "training step" and case["name"] == "small, training step"
    assert [e["status"] for e in case["providers"]] == ["ok", "ok", "wrong", "wrong"]


def test_the_training_bench_sees_a_wrong_gradient():
    """Of a network of torchvision's, small: dropout is off, so that both compute the same."""
    case = bench_training.Case("fcn_resnet50", 2, 33)
    given = Given(bench_training, case, CPU, torch.float32)
    judge = given.judge("training step")
    loss, gradients = Provider("fastseg", "channels_last", peer=False).prepare(given, "training step")()
    assert judge((loss, gradients)).wrong is None
    assert "error" in judge((loss, [2 * gradients[0], *gradients[1:]])).wrong
    assert "the loss is off" in judge((1.0001 * loss, gradients)).wrong
    assert judge((torch.nextafter(loss, 2 * loss), gradients)).wrong is None  # PyTorch's own may be exact by chance


def test_the_training_bench_judges_bfloat16():
    """Its loss is float32 on both sides, and noise is not so large that no gradient at all would do."""
    given = Given(bench_training, bench_training.Case("fcn_resnet50", 2, 33), CPU, torch.bfloat16)
    judge = given.judge("training step")
    for name in ("eager", "fastseg"):
        loss, gradients = Provider(name, "channels_last", peer=name == "eager").prepare(given, "training step")()
        assert judge((loss, gradients)).wrong is None
        assert "error" in judge((loss, list(map(torch.zeros_like, gradients)))).wrong


def test_a_case_whose_library_is_missing_is_skipped():
    bench = fake_bench(cases=(Case("there"), Case("absent")))
    bench.absent = lambda case: "no such library" if case.name == "absent" else None
    there, absent = run(bench)["benches"][0]["cases"]
    assert there["skipped"] is None and absent["skipped"] == "no such library" and absent["providers"] == []


def test_patched_models_are_patched():
    case = next(case for case in bench_patched.CASES if "mobilenet" in case.name)
    ours, stock = bench_patched.ours(case), bench_patched.peer(case)
    assert fastseg.is_patched(ours) and not fastseg.is_patched(stock)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))
    absent = bench_patched.Case("none", "no_such_library", lambda: None)
    assert bench_patched.absent(absent) == "no_such_library is not installed: pip install no_such_library"


def test_gradients_are_compiled_only_where_there_is_time():
    bench = differentiable_bench()

    def compiled(which, quick):
        names = [p.name for p in harness.competitors(bench, bench.CASES[0], which, CPU, quick)]
        return "torch.compile" in names

    assert compiled("both", quick=False) and not compiled("forward", quick=True)  # it is SLOW_TO_COMPILE
    bench.SLOW_TO_COMPILE = False
    assert compiled("forward", quick=True) and not compiled("both", quick=True)
    bench.compiles = lambda case, which, device: which == "forward"
    assert compiled("forward", quick=False) and not compiled("both", quick=False)


def test_a_case_too_big_for_the_machine_is_skipped():
    result = run(differentiable_bench(memory=lambda case, dtype, which: 1e18 if which == "both" else 1e3))
    cases = result["benches"][0]["cases"]
    assert [case["skipped"] is None for case in cases] == [True, True, False] and cases[2]["providers"] == []
    (remark,) = report.remarks(result["benches"][0])
    assert remark.startswith("small, both: skipped, PyTorch needs some 1000000000 GB of memory for it, and ")


def test_slow_calls_get_the_fewest_rounds():
    def rounds(effort):
        told = []
        harness.run({"double": fake_bench()}, CPU, torch.float32, effort, tell=told.append)
        return sum("round" in what for what in told)

    assert rounds(harness.Effort(quick=True, seconds=0, least_rounds=7)) == 7
    assert rounds(harness.Effort(quick=True, seconds=0, least_rounds=7, patience=0)) == harness.FEWEST_ROUNDS


def test_ratios_rates_and_shares():
    timed = [{"status": "ok", "peer": peer, "median_ms": ms} for peer, ms in ((True, 4.0), (True, 2.0), (False, 0.5))]
    ceilings = {"copy_gb_per_s": 8.0, "matmul_tflop_per_s": 0.04}
    harness._compare([*timed, {"status": "wrong"}], {"bytes": 2e6, "flops": 1e10, "executed_flops": 2.5e9}, ceilings)
    assert [entry["speedup"] for entry in timed] == [0.5, 1.0, 4.0]
    assert timed[2]["gb_per_s"] == pytest.approx(4.0)
    assert timed[2]["gb_per_s_of_ceiling"] == pytest.approx(0.5)
    assert timed[2]["tflop_per_s"] == pytest.approx(20)
    assert timed[2]["tflop_per_s_of_ceiling"] == pytest.approx(500)
    assert [entry["executed_tflop_per_s"] for entry in timed] == [None, None, pytest.approx(5)]


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
    assert kept["schema"] == schema.VERSION and kept["complete"] is False
    assert [case["name"] for case in kept["benches"][0]["cases"]] == ["first"]
    assert kept["machine"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == [path]


def test_a_truth_that_cannot_be_had_skips_its_case():
    def checker(case, inputs):
        raise RuntimeError("out of memory")

    bench = fake_bench(cases=(Case("first"), Case("second")))
    bench.checker, right = checker, bench.checker
    skipped = run(bench)["benches"][0]["cases"]
    assert [case["skipped"] for case in skipped] == ["its check failed: RuntimeError: out of memory"] * 2
    bench.checker = right
    assert [case["skipped"] for case in run(bench)["benches"][0]["cases"]] == [None] * 2


def test_a_bench_without_a_quick_case_says_so():
    (bench,) = run(fake_bench(cases=(Case(quick=False),)))["benches"]
    assert bench["skipped"] == "no quick case for it" and bench["cases"] == []


def test_where_there_are_several_backends_the_choice_of_dispatch_comes_first(monkeypatch):
    bench = fake_bench(OP="upsample_argmax")
    for found, names in (
        (["native", "reference"], [""]),
        (["native", "composed", "reference"], ["", "native", "composed"]),
    ):
        monkeypatch.setattr(fastseg, "backends", lambda op, device, found=found: found)
        ours = [p for p in providers(bench, "cpu", compiles=False) if not p.peer and p.layout == "NCHW"]
        assert [p.backend or "" for p in ours] == names


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
        (["fcn", "--compare", "a.json", "b.json"], "--compare measures nothing"),
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
    for bench, code in ((differentiable_bench(), 0), (fake_bench(lambda x: x), 1)):
        monkeypatch.setattr(harness, "discover", lambda bench=bench: {"double": bench})
        assert cli.main(["bench", *options]) == code
        assert json.loads(files["json"].read_text())["complete"] is True
        assert files["png"].read_bytes().startswith(b"\x89PNG\r\n")
    said = capsys.readouterr().out
    assert "channels_last" in said and "…" not in said
    assert "peak MB" in said  # of the second bench: the first one's cases have other names
    assert all(f" small, {which} " in said for which in ("forward", "backward", "both"))
    assert "small, fastseg, NCHW: wrong: not the double" in said


def printed_by(code):
    environment = {**os.environ, **memory.EVERY_BLOCK_TO_THE_SYSTEM, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "OSError" in done.stderr:
        pytest.skip("this system does not say how much memory a process uses")
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_peak_memory_of_a_known_call():
    """Upsampled logits in float32 and their argmax in int64 live at the same time."""
    (peak,) = printed_by("""
import torch, torch.nn.functional as F
from fastseg.bench.memory import growth
x = torch.randn(1, 21, 65, 65)
call = lambda: F.interpolate(x, (513, 513), mode="bilinear").argmax(1)
call()
print(growth(call))
""")
    assert peak == pytest.approx((21 * 4 + 8) * 513 * 513, rel=0.02)


def test_peak_memory_of_the_passes():
    """The peer's loss: in training at least one more tensor of full size lives. Backward of bilinear upsampling alone
    allocates the gradient, but not the upstream gradient that it is given."""
    forward, both, backward = printed_by("""
import torch
from fastseg.bench import bench_upsample_bilinear, bench_upsample_cross_entropy
from fastseg.bench.memory import growth
from fastseg.bench.passes import Given
from fastseg.bench.providers import Provider
eager = Provider("eager", "NCHW", peer=True)
loss, upsampling = (
    Given(bench, bench.CASES[0], torch.device("cpu"), torch.float32)
    for bench in (bench_upsample_cross_entropy, bench_upsample_bilinear)
)
for given, which in ((loss, "forward"), (loss, "both"), (upsampling, "backward")):
    call = eager.prepare(given, which)
    call()
    print(growth(call))
""")
    full = 21 * 4 * 513 * 513
    assert both - forward > 0.9 * full
    assert 21 * 4 * 65 * 65 <= backward < 0.1 * full


def test_one_process_measures_the_memory_of_all_benches(monkeypatch):
    """What dies is started anew, and takes only its own bench along."""
    monkeypatch.setattr(memory.CpuProcess, "peaks", PEAKS)
    with memory.CpuProcess(torch.float32, quick=True) as apart:
        found = apart.peaks("pyramid_pool")
        assert found[("PSPNet 473, forward", "eager", "NCHW")] > 0
        first = apart.process
        assert apart.peaks("no_such_bench") == {} and first.poll() is not None
        assert apart.peaks("fcn") == {} and apart.process is not first  # no quick case
    assert apart.process.poll() is not None


def test_the_process_for_memory_ends_with_the_one_that_started_it():
    """In the middle of a bench too: nobody is left to read what it finds."""
    apart = memory.CpuProcess(torch.float32, quick=False)
    process = apart.process = apart._started()
    process.stdin.write("networks\n")
    process.stdin.close()
    assert process.stdout.read() == "" and process.wait(timeout=60) == 0


def test_labels_may_differ_only_by_rounding():
    exact = torch.tensor([[[1.0, 3.0]], [[1.0 + 1e-6, 2.0]]], dtype=torch.float64)  # (C, H, W) of one image
    judge = label_judge(1, lambda i: exact, lambda i: exact + 1e-6)
    assert judge(torch.tensor([[[1, 0]]])) == (0, None)
    assert judge(torch.tensor([[[0, 0]]], dtype=torch.uint8)) == (0.5, None)  # a tie to within rounding
    assert "1 labels of image 0 off by up to 1" in judge(torch.tensor([[[1, 1]]])).wrong
    assert "there are 2 classes" in judge(torch.tensor([[[2, 0]]])).wrong
    assert "shape (1, 2)" in judge(torch.tensor([[1, 0]])).wrong


def test_values_may_be_off_by_what_pytorch_is_off_by():
    exact = torch.linspace(1, 2, 6, dtype=torch.float64).view(2, 3)
    judge = value_judge(2, lambda i: exact[i], lambda i: exact[i].float() + 1e-4)
    error, wrong = judge((exact + 1.4e-4).float())
    assert wrong is None and error == pytest.approx(1.4e-4 * 6**0.5 / exact.norm().item(), rel=1e-2)
    assert judge((exact + 1.6e-4).float()).wrong.startswith("relative L2 error")
    one_off = exact.clone()
    one_off[1, 2] += 2e-4
    assert judge(one_off.float()).wrong.startswith("relative largest error")
    assert judge(torch.full((2, 3), float("nan"))).wrong.startswith("relative L2 error nan")
    assert "torch.float64 of shape (2, 3), wanted torch.float32" in judge(exact).wrong
    assert "wanted torch.float32 of shape (2, 3)" in judge(exact.float()[:1]).wrong


TINY = heads.Case("tiny", (2, 5, 7, 6), (49, 41))


def test_targets_are_classes_and_some_are_ignored():
    targets = heads.targets(TINY, torch.Generator().manual_seed(0))
    assert targets.shape == (2, 49, 41) and targets.dtype == torch.int64
    ignored = targets == heads.IGNORED
    assert 0.04 < ignored.float().mean() < 0.06 and targets[~ignored].max() < 5


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("bench", (bench_upsample_bilinear, bench_upsample_cross_entropy), ids=lambda b: b.OP)
def test_the_reference_passes_and_another_function_does_not(bench, dtype, monkeypatch):
    given = Given(bench, TINY, CPU, dtype)
    for which in bench.PASSES:
        for layout in ("NCHW", "channels_last"):
            for provider in (
                Provider("eager", layout, peer=True),
                Provider("fastseg reference", layout, peer=False, backend="reference"),
            ):
                with provider.active():
                    assert given.judge(which)(provider.prepare(given, which)()).wrong is None
    peer = bench.peer(TINY)
    wrong = types.SimpleNamespace(peer=lambda case: lambda x, *target: peer(x.flip(3), *target))
    monkeypatch.setattr(given, "bench", wrong)
    for which in bench.PASSES:
        reason = given.judge(which)(Provider("eager", "NCHW", peer=True).prepare(given, which)()).wrong
        assert "error" in reason or "off by" in reason


ATROUS = (
    (bench_atrous_conv2d, bench_atrous_conv2d.Case("tiny", (2, 32, 9, 9), 32, 3)),
    (bench_atrous_pyramid, bench_atrous_pyramid.Case("tiny", (2, 32, 9, 9), (2, 4))),
)


@pytest.mark.parametrize("bench, case", ATROUS, ids=lambda x: getattr(x, "OP", ""))
def test_large_convolutions_are_judged_by_some_of_their_channels(bench, case):
    for which in bench.PASSES:
        given = Given(bench, case, CPU, torch.float32)
        for layout in ("NCHW", "channels_last"):
            result = Provider("fastseg", layout, peer=False).prepare(given, which)()
            assert given.judge(which)(result).wrong is None
        results = [result] if which == "forward" else result
        assert [x is None for x in results] == {
            "input gradient": [False, True],
            "weight gradient": [True, False],
        }.get(which, [False] * len(results))
        wrong = [None if x is None else x.flip(0) for x in results]
        assert "error" in given.judge(which)(wrong[0] if which == "forward" else wrong).wrong


def test_executed_flops():
    """Of the forward pass the planner's, of the weight's gradient the valid products: here counted one by one."""
    case = bench_atrous_conv2d.Case("tiny", (2, 4, 9, 7), 5, 3)
    valid = F.conv2d(torch.ones(2, 4, 9, 7), torch.ones(5, 4, 3, 3), padding=3, dilation=3).sum().item()
    assert bench_atrous_conv2d.executed_flops(case, "weight gradient") == pytest.approx(2 * valid)
    large = bench_atrous_conv2d.Case("large", (8, 2048, 65, 65), 256, 24)
    share = bench_atrous_conv2d.executed_flops(large, "forward") / bench_atrous_conv2d.flops(large, "forward")
    assert 0.5 < share < 0.7 and large.detail.endswith(f"{100 * share:.0f} % executed")


def test_cases_that_take_minutes_are_left_out_of_a_device():
    bench = fake_bench(fits=lambda case, device: device.type == "cuda")
    assert harness.cases_of(bench, False, CPU) == []
    assert harness.cases_of(bench, False, torch.device("cuda")) == list(bench.CASES)


def test_an_op_with_only_a_reference_is_timed_as_dispatch_chooses():
    names = [(p.name, p.backend) for p in providers(bench_atrous_conv2d, "cpu", compiles=False) if not p.peer]
    assert names == [("fastseg", None)] * 2
