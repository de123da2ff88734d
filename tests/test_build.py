"""setup.py's decisions, and what the compiled library holds."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

import fastseg

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setup():
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("fastseg_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        spec.loader.exec_module(module)
    finally:
        os.chdir(before)
    return module


@pytest.mark.parametrize(
    "text, archs",
    [
        ("8.0", ["80"]),
        ("8.0;9.0a+PTX", ["80", "90a", "90+PTX"]),
        ("8.6 12.0+PTX", ["86", "120", "120+PTX"]),
        ("10.0f", ["100f"]),
    ],
)
def test_arch_list(setup, text, archs):
    assert setup.parse_arch_list(text) == archs


def test_wrong_arch_list(setup):
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST must be numbers such as '8.0;9.0a.PTX', got 'Ampere'"):
        setup.parse_arch_list("Ampere")


def test_gencode(setup):
    assert setup.gencode("90a") == "-gencode=arch=compute_90a,code=sm_90a"
    assert setup.gencode("90+PTX") == "-gencode=arch=compute_90,code=compute_90"


@pytest.mark.parametrize("said, archs", [("9.0\n9.0\n8.6\n", ["86", "90a"]), ("", []), ("No devices\n", [])])
def test_visible_archs(setup, monkeypatch, said, archs):
    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=said))
    assert setup.visible_archs() == archs


def test_cuda_wanted_but_absent(setup, monkeypatch):
    monkeypatch.setenv("FASTSEG_CUDA", "1")
    monkeypatch.setattr(setup, "find_cuda_home", lambda guess: None)
    with pytest.raises(SystemExit, match="FASTSEG_CUDA=1, but no CUDA toolkit"):
        setup.arguments()
    monkeypatch.setenv("FASTSEG_CUDA", "yes")
    with pytest.raises(SystemExit, match="FASTSEG_CUDA must be 0 or 1, got 'yes'"):
        setup.arguments()


def test_torch_is_asked_for_only_when_there_is_none(setup, monkeypatch):
    monkeypatch.setattr(setup, "find_torch", lambda: None)
    monkeypatch.setattr(setup.sys, "argv", ["setup.py", "egg_info"])
    assert setup.arguments() == {"setup_requires": ["torch>=2.10"]}
    monkeypatch.setattr(setup.sys, "argv", ["setup.py", "bdist_wheel"])
    with pytest.raises(SystemExit, match="building needs torch>=2.10"):
        setup.arguments()


def test_no_extension_on_request(setup, monkeypatch):
    monkeypatch.setenv("FASTSEG_NO_EXT", "1")
    assert setup.arguments() == {}


@pytest.fixture
def library():
    path = fastseg.build_info()["extension"]
    if path is None:
        pytest.skip("the extension is not built")
    return path


def test_versions_agree(setup, library):
    assert fastseg.build_info()["version"] == setup.VERSION == fastseg.__version__
