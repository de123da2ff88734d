"""The table: what is chosen, what is forced, and what is said when nothing fits."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import fastseg
from fastseg import dispatch, extension


@pytest.fixture
def table(monkeypatch):
    """The table with an op of its own, `twice`, whose backends leave their name in `ran`."""
    ran = []

    def implementation(name):
        def run(x, limit):
            ran.append(name)
            return x + x

        return run

    def why_not(backend, x, limit):
        return f"x is longer than {limit}" if backend == "composed" and x.numel() > limit else None

    library = torch.library.Library("fastseg_test", "DEF")
    native = torch.library.Library("fastseg_test_native", "DEF")
    monkeypatch.setattr(dispatch, "_public", library)
    monkeypatch.setattr(dispatch, "_native", native)
    monkeypatch.setattr(dispatch, "_ops", {})
    monkeypatch.setattr(torch.ops, "fastseg", torch.ops.fastseg_test)
    monkeypatch.setattr(torch.library, "register_fake", lambda *a, **k: None)
    op = dispatch.register(
        "twice(Tensor x, int limit) -> Tensor",
        implementation("reference"),
        composed=implementation("composed"),
        native=(),
        triton=False,
        why_not=why_not,
    )
    yield op, ran
    library._destroy()
    native._destroy()
    for cached in (dispatch.missing, dispatch._function, dispatch._warn_slow):
        cached.cache_clear()


def test_first_that_can_run_wins(table):
    twice, ran = table
    twice(torch.ones(3), 5)
    twice(torch.ones(9), 5)
    assert ran == ["composed", "reference"]


def test_choose_tells_why(table):
    backend, reasons = dispatch.choose("twice", "cpu", torch.ones(9), 5)
    assert backend == "reference"
    assert reasons == {"native": "this op has no cpu kernel", "composed": "x is longer than 5", "reference": None}


def test_measured_exceptions_come_first(table, monkeypatch):
    twice, ran = table
    monkeypatch.setitem(dispatch.ORDER_FOR, ("twice", "cpu"), ("reference", "composed"))
    twice(torch.ones(3), 5)
    assert ran == ["reference"]


def test_forced_backend_does_not_fall_back(table):
    twice, _ = table
    with fastseg.use_backend("composed"), pytest.raises(NotImplementedError) as raised:
        twice(torch.ones(9), 5)
    said = str(raised.value)
    assert "fastseg.twice: nothing can run this call on cpu" in said
    assert "native: this op has no cpu kernel" in said
    assert "triton: this op has no Triton kernel" in said
    assert "composed: x is longer than 5" in said
    assert "reference: not asked for" in said


def test_use_backend_nests_and_restores():
    with fastseg.use_backend("reference"):
        with fastseg.use_backend("native"):
            assert dispatch.forced == "native"
        assert dispatch.forced == "reference"
    assert dispatch.forced is None

    @fastseg.use_backend("reference")
    def decorated():
        return dispatch.forced

    assert (dispatch.forced, decorated(), dispatch.forced) == (None, "reference", None)


def test_unknown_backend():
    says = "backend must be one of native, triton, composed, reference, got 'cudnn'"
    with pytest.raises(ValueError, match=says), fastseg.use_backend("cudnn"):
        pass


def test_use_backend_in_a_compiled_function_is_an_error():
    """It would be traced away, and another backend would run than the one that was asked for."""

    def labels(x):
        with fastseg.use_backend("reference"):
            return fastseg.ops.upsample_argmax(x, 4)

    with pytest.raises(Exception, match="no effect inside a compiled function|Unsupported|use_backend"):
        torch.compile(labels, fullgraph=True, backend="eager")(torch.randn(1, 2, 2, 2))


@pytest.mark.parametrize("op, device", [("nope", "cpu"), ("upsample_argmax", "mps")])
def test_backends_of_what_there_is_not(op, device):
    with pytest.raises(ValueError, match="fastseg.backends: wanted one of .*upsample_argmax.* on cpu or cuda, got"):
        fastseg.backends(op, device)


def test_backends_takes_a_device():
    assert fastseg.backends("upsample_argmax", torch.device("cpu")) == fastseg.backends("upsample_argmax", "cpu")


def test_missing_kernels_are_told_once(monkeypatch):
    monkeypatch.setattr(dispatch, "missing", lambda name, backend, device: "not built" if backend == "native" else None)
    monkeypatch.setattr(dispatch, "ORDER", {"cpu": ("native", "reference")})
    dispatch._warn_slow.cache_clear()
    x = torch.randn(1, 2, 2, 2)
    with pytest.warns(UserWarning, match="upsample_argmax runs the slow reference on cpu .native: not built"):
        fastseg.ops.upsample_argmax(x, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastseg.ops.upsample_argmax(x, 4)
    dispatch._warn_slow.cache_clear()


def test_reference_by_nature_is_not_told(monkeypatch):
    """No kernel takes float64, so that none is installed is not the reason."""
    monkeypatch.setattr(dispatch, "missing", lambda name, backend, device: "not built" if backend == "native" else None)
    dispatch._warn_slow.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastseg.ops.upsample_argmax(torch.randn(1, 2, 2, 2, dtype=torch.float64), 4)


def test_the_kernel_runs_when_it_is_built():
    """The fast path is taken, not merely available."""
    backend, _ = dispatch.choose("upsample_argmax", "cpu", torch.randn(1, 2, 2, 2), (4, 4), False, torch.uint8)
    assert backend == ("native" if fastseg.build_info()["extension"] else "reference")


@pytest.mark.parametrize(
    "arch, capability, runs",
    [
        ("80", (8, 0), True),
        ("80", (8, 9), True),  # machine code runs on later minor versions
        ("89", (8, 6), False),
        ("80", (9, 0), False),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),  # 'a' code is for that chip alone
        ("90+PTX", (12, 0), True),
        ("90+PTX", (8, 9), False),
        ("100", (10, 3), True),
    ],
)
def test_which_gpu_runs_what(arch, capability, runs):
    assert extension.runs_on(arch, capability) == runs


def python(code, **environment):
    """Runs code in a new process; returns (exit code, what it printed)."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


RUN = """
import torch, fastseg
x = torch.arange(8.0).view(1, 2, 2, 2)
print(fastseg.ops.upsample_argmax(x, 4).sum().item(), fastseg.backends("upsample_argmax", "cpu"))
"""


def test_environment_forces_a_backend():
    code = "import torch, fastseg; print(fastseg.dispatch.forced)"
    assert python(code, FASTSEG_BACKEND="reference") == (0, "reference\n")
    status, said = python(RUN, FASTSEG_BACKEND="fast")
    assert status == 1
    assert "fast: there is no such backend (FASTSEG_BACKEND); wanted one of native, triton" in said


def test_import_without_gpu_and_triton():
    hide = "import sys; sys.modules['triton'] = None; import importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'triton' else f(name, *a)\n"
    status, said = python(hide + RUN, CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="0")
    assert status == 0, said
    assert "16" in said
    assert "triton" not in said.splitlines()[-1]


def test_import_without_the_extension():
    hide = "from pathlib import Path; e = Path.exists\n"
    hide += "Path.exists = lambda p, **k: p.name != '_C.abi3.so' and e(p, **k)\n"
    status, said = python(hide + RUN, TRITON_INTERPRET="0")
    assert status == 0, said
    assert "runs the slow reference on cpu" in said
    assert "pip install ." in said
    assert "16 ['reference']" in said


def test_import_leaves_cuda_alone_and_survives_fork():
    code = """
import os, torch, fastseg
assert not torch.cuda.is_initialized()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(int(fastseg.ops.upsample_argmax(torch.randn(1, 3, 4, 4), 9).shape != (1, 9, 9)))
assert os.waitpid(child, 0)[1] == 0
"""
    status, said = python(code)
    assert status == 0, said
