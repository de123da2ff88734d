"""The stand-in for CUDA on the CPU (cuda_on_cpu/README.md): it runs right kernels right and reports planted faults."""

import shutil
import subprocess

import cuda_on_cpu
import numpy as np
import pytest
import torch
from cuda_on_cpu import KernelError, Schedule, build

pytestmark = cuda_on_cpu.needed
faults, tensor_cores = cuda_on_cpu.Kernel("faults"), cuda_on_cpu.Kernel("gemm")

# kernel of faults.cuh: the builds that report it and what they say; "wrong values" where a plain run's result differs
# from the right one under at least one seed.
WRONG = "wrong values"
FAULTS = {
    "missing_syncthreads": {"race": r"race: thread \d+ reads shared memory at faults.cuh:\d+, which", "plain": WRONG},
    "missing_syncthreads_before_reuse": {
        "race": r"race: thread \d+ (reads|writes) .* with no barrier between them",
        "plain": WRONG,
    },
    "missing_syncwarp": {"race": "race: thread .* reads", "plain": WRONG},
    "shuffle_as_barrier": {"race": "race: thread .* writes"},  # README.md: a limit of the plain build
    "missing_copy_wait": {"race": "a cp.async of thread .* is still filling", "plain": WRONG},
    "missing_copy_commit": {"race": "a cp.async of thread .* is still filling", "plain": WRONG},
    "missing_barrier_after_copy_wait": {"race": "race: thread .* reads", "plain": WRONG},
    "read_outside_global": {"memory": "heap-buffer-overflow(?s:.*)READ(?s:.*)faults.cuh"},
    "write_outside_global": {"memory": "heap-buffer-overflow(?s:.*)WRITE(?s:.*)faults.cuh"},
    "read_outside_dynamic_shared": {"memory": "heap-buffer-overflow(?s:.*)READ(?s:.*)faults.cuh"},
    "write_outside_dynamic_shared": {"memory": "heap-buffer-overflow(?s:.*)WRITE(?s:.*)faults.cuh"},
    "read_outside_static_shared": {"memory": "faults.cuh:.* load of address .* with insufficient space"},
    "write_outside_static_shared": {"memory": "faults.cuh:.* store to address .* with insufficient space"},
    "misaligned_vector_load": {"memory": "faults.cuh:.*misaligned address"},
    "divergent_syncthreads": dict.fromkeys(
        build.BUILDS,
        r"deadlock: (__syncthreads at faults.cuh:\d+ has threads (0-47|48-63); ){2}none has exited",
    ),
    "divergent_shuffle": dict.fromkeys(build.BUILDS, "deadlock: .*__shfl_xor_sync at .*__syncwarp at "),
    "lane_outside_its_mask": dict.fromkeys(
        build.BUILDS, r"__shfl_xor_sync at faults.cuh:\d+: lane \d+ is not in its own mask"
    ),
    "shuffle_from_an_absent_lane": dict.fromkeys(build.BUILDS, r"lane \d+ reads lane \d+, which does not take part"),
    "uninitialised_dynamic_shared": {"race": "reads .* uninitialised: nothing in this block wrote it", "plain": WRONG},
    "uninitialised_static_shared": {"race": "reads .* uninitialised: nothing in this block wrote it", "plain": WRONG},
    "uninitialised_register": {"plain": WRONG},
    "sum_without_atomics": {"race": "race: thread"},
    "failed_assertion": dict.fromkeys(build.BUILDS, r"assertion failed: !kFaulty \|\| i != 40 at faults.cuh:\d+"),
    "too_large_a_block": dict.fromkeys(build.BUILDS, "a block's threads 1025 is over the limit of 1024"),
    "larger_than_launch_bounds": dict.fromkeys(build.BUILDS, "__launch_bounds__ 65 is over the limit of 64"),
    "too_deep_a_grid": dict.fromkeys(build.BUILDS, "grid.z 65536 is over the limit of 65535"),
    "empty_grid": dict.fromkeys(build.BUILDS, "launch: an empty grid"),
    "shared_memory_not_allowed": dict.fromkeys(build.BUILDS, "shared memory 102400 is over the limit of 49152"),
    "too_much_shared_memory": dict.fromkeys(build.BUILDS, "cudaFuncSetAttribute 233472 is over the limit of 232448"),
}


def values_of(name, faulty, schedule):
    """Runs a kernel of faults.cuh; True if what it leaves is right."""
    values, result = torch.arange(64.0), torch.full((64,), float("nan"))
    faults("run", name, faulty, values, result, schedule=schedule)
    expected = values.flip(0)
    if name == "sum_without_atomics":
        expected[0] = values.sum()
    return torch.equal(result, expected)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("name", FAULTS)
def test_right_kernels_pass(name, schedule):
    assert values_of(name, False, schedule)


@pytest.mark.parametrize("name, reports", [(name, reports) for name, by in FAULTS.items() for reports in by.items()])
def test_planted_faults_are_reported(name, reports):
    which, says = reports
    schedules = [schedule for schedule in cuda_on_cpu.SCHEDULES if schedule.build == which]
    if says == WRONG:
        assert not all(values_of(name, True, schedule) for schedule in schedules)
        return
    for schedule in schedules:
        with pytest.raises(KernelError, match=says):
            values_of(name, True, schedule)


@pytest.mark.parametrize("name", ("shuffle_as_barrier", "sum_without_atomics"))
@pytest.mark.parametrize("seed", range(5))
def test_known_limits(name, seed):
    """Faults that change no value under any seed (README.md); the race build reports them, above."""
    assert values_of(name, True, Schedule("plain", seed))


def gemm(dtype, shape, schedule, fault=0, whole=True):
    """(our product, numpy's) of two random matrices, of small whole numbers so that both are exact."""
    m, n, k = shape
    a, b = (torch.randint(-8, 9, size).float() if whole else torch.randn(size) for size in ((m, k), (n, k)))
    c = torch.full((m, n), float("nan"))
    tensor_cores("gemm", a.to(dtype), b.to(dtype), c, fault, schedule=schedule)
    return c.numpy(), a.numpy().astype("float64") @ b.numpy().astype("float64").T


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("shape", ((70, 45, 104), (5, 3, 8), (32, 32, 32)), ids=str)
def test_gemm(shape, dtype, schedule):
    ours, expected = gemm(dtype, shape, schedule)
    assert np.array_equal(ours, expected)


def test_tf32_drops_the_low_bits():
    ours, expected = gemm(torch.float32, (32, 32, 32), Schedule("plain", 0), whole=False)
    error = np.abs(ours - expected).max()
    assert 2**-14 < error < 32 * 2**-7


GEMM_FAULTS = {  # in the order of GemmFault
    "no wait for the newest copy": {"race": "a cp.async of thread .* is still filling", "plain": WRONG},
    "no barrier after the wait": {"race": "race: .*ldmatrix|race: thread .* reads", "plain": WRONG},
    "no barrier before the next copy": {"race": "race: thread .* writes", "plain": WRONG},
    "wrong fragment index": {"plain": WRONG},
    "wrong column of the sum": {"plain": WRONG},
    "copies a row too many": {"memory": "heap-buffer-overflow(?s:.*)READ"},
}


@pytest.mark.parametrize(
    "fault, reports", [(name, reports) for name, by in GEMM_FAULTS.items() for reports in by.items()]
)
def test_planted_gemm_faults_are_reported(fault, reports):
    which, says = reports
    shape, number = (33, 32, 104), 1 + list(GEMM_FAULTS).index(fault)
    schedules = [schedule for schedule in cuda_on_cpu.SCHEDULES if schedule.build == which]
    if says == WRONG:
        pairs = [gemm(torch.bfloat16, shape, schedule, number) for schedule in schedules]
        assert not all(np.array_equal(ours, expected) for ours, expected in pairs)
        return
    for schedule in schedules:
        with pytest.raises(KernelError, match=says):
            gemm(torch.bfloat16, shape, schedule, number)


@cuda_on_cpu.each_schedule
def test_intrinsics(schedule):
    lane = np.arange(32)
    values = np.array([0, *np.random.default_rng(0).integers(1, 2**31, 31)], dtype=np.int32)
    results, counters = torch.full((32, 14), -7, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    faults("intrinsics", torch.from_numpy(values), results, counters, schedule=schedule)
    first, last = lane // 8 * 8, lane // 8 * 8 + 7  # of a segment of 8 lanes
    ballot = sum(1 << int(i) for i in lane[values % 3 == 0])
    expected = [
        np.full(32, values[5]),
        values[first + (lane + 3) % 8],
        values[lane ^ 12],
        values[np.where((lane ^ 12) <= last, lane ^ 12, lane)],
        values[np.where(lane >= 3, lane - 3, lane)],
        values[np.where(lane - 3 >= first, lane - 3, lane)],
        values[np.where(lane < 29, lane + 3, lane)],
        values[np.where(lane + 3 <= last, lane + 3, lane)],
        np.full(32, np.uint32(ballot).astype(np.int32)),
        np.full(32, 1),
        np.full(32, 1),
        [int(v).bit_count() for v in values],
        [(int(v) & -int(v)).bit_length() for v in values],
        [32 - int(v).bit_length() for v in values],
    ]
    assert np.array_equal(results.numpy(), np.array(expected).T)
    assert counters.tolist() == [int(values.astype(np.uint32).sum(dtype=np.uint32).astype(np.int32)), values.max()]


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_ldmatrix_fragments(count, transposed):
    """PTX manual: lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix or its transpose."""
    matrices = torch.arange(count * 64).view(count, 8, 8).short()
    held = torch.full((32, count), -1, dtype=torch.int32)
    tensor_cores("fragments", matrices, held, transposed, schedule=Schedule("race", 0))
    given = matrices.mT if transposed else matrices
    expected = given.reshape(count, 32, 2).permute(1, 0, 2).numpy()
    assert np.array_equal(held.numpy().view(np.int16).reshape(32, count, 2), expected)


def test_seeds_repeat():
    """A seed names a schedule: the same wrong values again."""

    def wrong(seed):
        result = torch.zeros(64)
        faults("run", "missing_syncthreads", True, torch.arange(64.0), result, schedule=Schedule("plain", seed))
        return result

    assert torch.equal(wrong(7).nan_to_num(-1), wrong(7).nan_to_num(-1))


KERNELS_FOR_NVCC = """
#include "faults.cuh"
#include "gemm.cuh"
#include "intrinsics.cuh"
namespace fastseg {
template __global__ void missing_copy_wait<false>(const float*, float*);
template __global__ void gemm_kernel<float, GemmFault::kNone>(const float*, const float*, float*, int, int, int);
template __global__ void gemm_kernel<__half, GemmFault::kNone>(const __half*, const __half*, float*, int, int, int);
template __global__ void gemm_kernel<__nv_bfloat16, GemmFault::kNone>(const __nv_bfloat16*, const __nv_bfloat16*,
                                                                      float*, int, int, int);
template __global__ void fragments_kernel<1, false>(const uint16_t*, uint32_t*);
template __global__ void fragments_kernel<2, true>(const uint16_t*, uint32_t*);
template __global__ void fragments_kernel<4, true>(const uint16_t*, uint32_t*);
}
"""


@pytest.mark.parametrize("arch", ("sm_80", "sm_90a"))
def test_nvcc_compiles_the_same_kernels(arch, tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(build.cuda_headers().parent / "bin"))
    if nvcc is None:
        pytest.skip("there is no nvcc")
    source = tmp_path / "kernels.cu"
    source.write_text(KERNELS_FOR_NVCC)
    command = [nvcc, "-std=c++17", f"-arch={arch}", f"-I{build.CSRC}", f"-I{build.HERE}", "-cubin", source]
    done = subprocess.run([*command, "-o", tmp_path / "kernels.cubin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
