"""One op, one room: every op has its files, and every file belongs to an op."""

import re
from pathlib import Path

import pytest

from fastseg import dispatch

ROOT = Path(__file__).parent.parent
ROOMS = {dispatch.room(name) for name in dispatch.ops()}
# What several ops share, by folder. Everything else bears the name of an op: <op> or <op>_<part>.
SHARED = {
    "kernels": {"__init__", "bilinear", "gluon_names", "launch", "products"},
    "csrc/cpu": {"floats", "new_tensor", "parallel", "product", "simd", "spans", "vector_math"},
    "csrc/cuda": {"device", "launch", "position", "tile_product", "tile_steps"},
    "fastseg/ops": {"__init__", "arguments", "autocast", "kept", "layout", "precision", "recording"},
}


@pytest.mark.parametrize("name", dispatch.ops())
def test_an_op_has_its_files(name):
    room, kernels, op = dispatch.room(name), dispatch.kernel_room(name), dispatch._ops[name]
    wanted = [f"fastseg/ops/{room}.py", f"tests/test_{room}.py", f"bench/bench_{room}.py"]
    wanted += [f"kernels/{kernels}.py"] if op["triton"] else []
    wanted += [f"csrc/cpu/{room}.cpp"] if "cpu" in op["native"] else []
    cuda = [f"csrc/cuda/{kernels}.cu", f"csrc/cuda/{kernels}.cuh", f"tests/cuda_on_cpu/drivers/{kernels}.cpp"]
    wanted += cuda if "cuda" in op["native"] else []
    assert [file for file in wanted if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("folder", SHARED)
def test_a_file_belongs_to_an_op(folder):
    stems = {path.stem for path in (ROOT / folder).iterdir() if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")}
    parts = {stem for stem in stems for room in ROOMS if stem.startswith(f"{room}_")}
    assert stems - ROOMS - parts - SHARED[folder] == set()


def test_the_readme_says_which_kernels_there_are():
    """As dispatch, and so `fastseg info`, has them."""
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(fastseg/ops/\1\.py\).* \| (.*) \| (.*) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert {row[0] for row in rows} == {dispatch.room(op) for op in dispatch.ops()}
    for op, *said in rows:
        cpu, triton, cuda = (
            dispatch.not_written(op, backend, device) is None
            for backend, device in (("native", "cpu"), ("triton", "cuda"), ("native", "cuda"))
        )
        without = "PyTorch's" if dispatch.not_written(op, "composed", "cpu") else "composed"
        assert said[0] == ("yes" if cpu else without), op
        assert [cell.startswith("yes") for cell in said[1:]] == [triton, cuda], op
