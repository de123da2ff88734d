"""Every GPU kernel compiles, in every variant, and stays within what the GPU has. No GPU is needed.

The kernels of the built library and every launch of every Triton kernel, for sm_80 and sm_90, judged by their machine
code (fastseg/bench/resources.py).
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import ahead
import pytest

import fastseg
from fastseg import dispatch
from fastseg.bench import resources

KERNELS = Path(__file__).parent.parent / "bench/KERNELS.md"
# What a kernel's machine code must hold: matrix instructions where products bound it, 16-byte loads where memory does.
# () with the reason, where neither does.
MUST_HOLD = {
    # Its logits come from L1, read again and again by neighbouring cells: a warp reads 128 consecutive bytes per load.
    "upsample_argmax_kernel": (),
    # NCHW variants read along rows whose starts are not aligned, so not every variant can load 16 bytes; those that can
    # are asked below.
    "upsample_bilinear_kernel": (),
    "upsample_bilinear_backward_kernel": (),
    # Bound by exponentials.
    "upsample_cross_entropy_kernel": (),
    # Reads sums that are a hundredth of what the kernel above computes.
    "upsample_cross_entropy_gather_kernel": (),
    # NCHW, and channels that are not whole vectors, are read one by one.
    "pyramid_pool_rows_kernel": (),
    # In both languages. These read what others have reduced, to a fiftieth or so; their stores are what is wide.
    "pyramid_pool_cells_kernel": (),
    "pyramid_pool_spread_kernel": (),
    "pyramid_pool_scatter_kernel": (),
    # CUDA C++. float32 is not rounded to TF32, so FMA units multiply it.
    "deconv2d_fma_kernel": ("wide_loads",),
    "deconv2d_mma_kernel": ("HMMA", "wide_loads"),
    # Reads any strides; its stores are what is wide.
    "deconv2d_pack_kernel": (),
    # Reads the few sums that a product is cut into.
    "deconv2d_sum_kernel": (),
    # One element at a time for the contiguous format; else, and forward only, 16 bytes.
    "deconv2d_depthwise_kernel": (),
    "deconv2d_depthwise_backward_input_kernel": (),
    "deconv2d_depthwise_backward_weight_kernel": (),
    "atrous_conv2d_fma_kernel": ("LDGSTS", "wide_loads"),
    "atrous_conv2d_mma_kernel": ("HMMA", "LDGSTS", "LDSM", "wide_loads"),
    "atrous_conv2d_backward_weight_fma_kernel": ("LDGSTS", "wide_loads"),
    "atrous_conv2d_backward_weight_mma_kernel": ("HMMA", "LDGSTS", "LDSM", "wide_loads"),
    # Reads the few sums that a product is cut into.
    "atrous_conv2d_sum_kernel": (),
    "pyramid_conv2d_fma_kernel": ("wide_loads",),
    "pyramid_conv2d_mma_kernel": ("HMMA", "wide_loads"),
    # Turn a weight of any strides; compute tables.
    "pyramid_conv2d_pack_kernel": (),
    "pyramid_conv2d_weights_kernel": (),
    # Reads the few sums that a product is cut into.
    "pyramid_conv2d_sum_kernel": (),
    # Reads a gradient of any strides; then what is left of it, from the caches.
    "pyramid_conv2d_columns_kernel": (),
    "pyramid_conv2d_rows_kernel": (),
    # Triton. Memory bounds them, and some variants load 16 bytes, as is asked below.
    "pyramid_pool_segments_kernel": (),
    "pyramid_pool_backward_kernel": (),
    # Tensor cores multiply all but IEEE float32, as is asked below.
    "pyramid_conv2d_kernel": (),
    "pyramid_conv2d_backward_slab_kernel": (),
    "deconv2d_kernel": (),
    "deconv2d_backward_input_kernel": (),
    "deconv2d_backward_weight_kernel": (),
    "atrous_conv2d_kernel": (),
    "atrous_conv2d_backward_weight_kernel": (),
    "atrous_conv2d_hopper_kernel": ("HGMMA", "UTMALDG"),
}

pytestmark = pytest.mark.skipif(resources.cuobjdump() is None, reason="no cuobjdump to read machine code with")


@pytest.fixture(scope="module")
def cuda():
    if not fastseg.build_info()["archs"]:
        pytest.skip("built without CUDA")
    return ahead.call(resources.of_cuda)


def of_triton(arch):
    return resources.of_triton((arch,), run=ahead.run)


class MachineCode(ahead.Needed):
    def jobs(self, item):
        """The kernels that the test asks for, as fixtures or as the `rows` it is given."""
        if resources.cuobjdump() is None:
            return []
        asked = {*item.fixturenames, *map(str, ahead.parameters(item).values())}
        cuda = [(resources.of_cuda,)] if "cuda" in asked else []
        triton = [(of_triton, arch) for arch in resources.TRITON_ARCHS] if importlib.util.find_spec("triton") else []
        return cuda + (triton if "triton" in asked else [])


machine_code = MachineCode()


@pytest.fixture(scope="module")
def triton():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    return [row for arch in resources.TRITON_ARCHS for row in ahead.call(of_triton, arch)]


@pytest.fixture(params=["cuda", "triton"])
def rows(request):
    return request.getfixturevalue(request.param)


def major(arch):
    return int(re.match(r"\d+", arch)[0]) // 10 * 10


def test_every_kernel_is_there(cuda, triton):
    """Each op's room has kernels, which bear its name, in both languages for all GPUs; and there are no others."""
    archs = {arch for arch in fastseg.build_info()["archs"] if not arch.endswith("+PTX")}
    for rows, backend, wanted in ((cuda, "native", archs), (triton, "triton", set(map(str, resources.TRITON_ARCHS)))):
        written = [name for name in dispatch.ops() if not dispatch.not_written(name, backend, "cuda")]
        rooms = set(map(dispatch.kernel_room, written))
        for room in rooms:
            assert {row["arch"] for row in rows if row["kernel"].startswith(room)} == wanted
        assert [row["kernel"] for row in rows if not row["kernel"].startswith(tuple(rooms))] == []
    assert len([row for row in cuda if row["kernel"] == "upsample_argmax_kernel"]) == 9 * len(archs)  # dtypes x labels


def test_nothing_spills(rows):
    assert all(row["instructions"] > 0 for row in rows), "the disassembly was not understood"
    spilled = [row for row in rows if row["stack"] or row["LDL"] or row["STL"]]
    assert spilled == []


def test_a_block_fits(rows):
    """Shared memory and registers of one block. (CUDA kernels bound their registers by __launch_bounds__.)"""
    for row in rows:
        assert row["shared"] <= resources.SHARED_LIMIT.get(major(row["arch"]), resources.LEAST_SHARED_LIMIT), row
        assert row["registers"] * row.get("threads", 0) <= resources.REGISTER_FILE, row


def test_the_expected_instructions(rows):
    for row in rows:
        for instruction in MUST_HOLD[row["kernel"]]:
            assert row[instruction] > 0, f"{row['kernel']} on sm_{row['arch']} {row['launch']} lacks {instruction}"


def test_dense_channels_are_loaded_by_16_bytes(triton):
    """By the kernels that memory bounds, where a pixel's channels are whole vectors."""
    bound = {"upsample_bilinear_kernel", "upsample_bilinear_backward_kernel", "pyramid_pool_segments_kernel"}
    many = "channels_last 2x64x", "channels_last 1x2048x"
    rows = [row for row in triton if row["launch"].startswith(many) and row["kernel"] in bound]
    assert {row["kernel"] for row in rows} == bound
    assert [row for row in rows if row["wide_loads"] == 0] == []


def test_tensor_cores_multiply(triton):
    """In every product of Triton kernels but those of IEEE float32."""
    products = {"deconv2d_kernel", "deconv2d_backward_input_kernel", "deconv2d_backward_weight_kernel"}
    products |= {"pyramid_conv2d_kernel", "pyramid_conv2d_backward_slab_kernel"}
    rows = [row for row in triton if row["kernel"] in products and re.search("float16|tf32", row["launch"])]
    assert {row["kernel"] for row in rows} == products
    assert [row for row in rows if row[{"80": "HMMA", "90": "HGMMA"}[row["arch"]]] == 0] == []


def test_boxes_go_straight_to_tensor_cores(triton):
    """atrous_conv2d's kernel for sm_90: between a copy to shared memory and its product, no thread touches a number."""
    rows = [row for row in triton if row["kernel"] == "atrous_conv2d_hopper_kernel"]
    assert {row["arch"] for row in rows} == {"90"}
    assert [row for row in rows if row["loop_shared"] > 0] == []


def test_the_page_is_not_stale(cuda, triton):
    page = KERNELS.read_text()
    if not {"80", "90a"} <= set(fastseg.build_info()["archs"]):
        pytest.skip("this library was built for other GPUs than bench/KERNELS.md speaks of")
    if resources.compilers() not in page:
        pytest.skip(f"bench/KERNELS.md was made with other compilers than {resources.compilers()}")
    assert page == resources.page(cuda, triton), "run python -m fastseg.bench.resources"


SPILLING = """
__global__ void spills_kernel(float* x, int n) {
  float held[64];
  for (int i = 0; i < 64; i++) held[i] = x[i];
  for (int i = 0; i < n; i++) x[i] = held[n - i & 63];
}
__global__ void wide_kernel(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


def test_the_gates_see_what_they_are_for(tmp_path):
    """A kernel that indexes an array at run time has a stack; one that copies float4 loads 16 bytes."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    source, cubin = tmp_path / "kernels.cu", tmp_path / "kernels.cubin"
    source.write_text(SPILLING)
    subprocess.run(["nvcc", "-cubin", "-gencode=arch=compute_80,code=sm_80", source, "-o", cubin], check=True)
    found = {row["kernel"]: row for row in resources.read(cubin)}
    assert found["spills_kernel"]["stack"] >= 256 and found["spills_kernel"]["LDL"] > 0
    assert found["spills_kernel"]["wide_loads"] == 0 and found["wide_kernel"]["wide_loads"] == 1
    assert found["wide_kernel"]["stack"] == 0
