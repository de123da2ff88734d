"""upsample_bilinear's CUDA kernels, on the CPU."""

import pytest
import torch
from check import assert_accurate, special, value_and_grad
from test_upsample_bilinear import CASES, DTYPES, EXACT, interpolate

import cuda_on_cpu

kernel = cuda_on_cpu.Kernel("upsample_bilinear")
ROUNDINGS = 4  # a product and a sum along each axis, as in the op's own test
LAYOUTS = pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))


def as_planes(x, channels_last):
    """x as the kernels see it: (planes, rows, columns, channels), dense."""
    return (x.permute(0, 2, 3, 1) if channels_last else x.flatten(0, 1)[..., None]).contiguous()


def from_planes(planes, shape, channels_last):
    return planes.permute(0, 3, 1, 2) if channels_last else planes.view(shape)


def upsample(x, size, align_corners, channels_last, schedule, vectors=True, most_blocks=65535):
    given = as_planes(x, channels_last)
    output = torch.full((given.shape[0], *size, given.shape[3]), float("nan"), dtype=x.dtype)
    kernel("upsample_bilinear", given, output, align_corners, vectors, most_blocks, schedule=schedule)
    return from_planes(output, (*x.shape[:2], *size), channels_last)


def gather(grad, size, align_corners, channels_last, schedule, vectors=True, most_blocks=65535, shared_floats=8192):
    given = as_planes(grad, channels_last)
    result = torch.full((given.shape[0], *size, given.shape[3]), float("nan"), dtype=grad.dtype)
    limits = vectors, most_blocks, shared_floats
    kernel("upsample_bilinear_backward", given, result, align_corners, *limits, schedule=schedule)
    return from_planes(result, (*grad.shape[:2], *size), channels_last)


def compare(x, size, align_corners, channels_last, schedule, shared_floats=8192, **how):
    coming = torch.randn(*x.shape[:2], *size)
    theirs = [
        value_and_grad(lambda x: interpolate(x, size, align_corners), x.to(dtype), coming.to(x.dtype))
        for dtype in (torch.float64, x.dtype, torch.float32)
    ]
    value, gradient = zip(*theirs, strict=True)
    assert_accurate("value", upsample(x, size, align_corners, channels_last, schedule, **how), *value, ROUNDINGS)
    how["shared_floats"] = shared_floats
    ours = gather(coming.to(x.dtype), x.shape[2:], align_corners, channels_last, schedule, **how)
    assert_accurate("gradient", ours, *gradient, ROUNDINGS)
    return ours


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "align_corners, channels_last", ((False, True), (True, False)), ids=("half_pixel-last", "align_corners-first")
)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, align_corners, channels_last, schedule):
    shape, size = CASES[case]
    compare(torch.randn(shape), size, align_corners, channels_last, schedule)


# Rows of whole vectors in float32 (4 elements) and half precision (8), or not.
VECTORS = {
    "across columns": ((1, 3, 3, 3), (17, 24), False),
    "across columns and channels": ((1, 3, 3, 3), (17, 24), True),
    "across more channels than a tile": ((1, 35, 3, 3), (17, 24), True),
    "within a column": ((1, 40, 3, 3), (17, 23), True),
    "unaligned": ((1, 40, 3, 3), (17, 24), True),
    "odd": ((1, 35, 3, 3), (17, 23), True),
}


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", VECTORS)
def test_vectors(case, dtype, schedule):
    shape, size, channels_last = VECTORS[case]
    compare(torch.randn(shape).to(dtype), size, False, channels_last, schedule, vectors=case != "unaligned")


@cuda_on_cpu.each_schedule
@LAYOUTS
@pytest.mark.parametrize("most_blocks", (1, 2))
def test_more_rows_and_planes_than_blocks(most_blocks, channels_last, schedule):
    """A block then takes one tile after another in the same shared memory."""
    compare(torch.randn(3, 5, 6, 4), (31, 21), False, channels_last, schedule, most_blocks=most_blocks)


@cuda_on_cpu.each_schedule
@LAYOUTS
@pytest.mark.parametrize("size", ((9, 200), (3, 2)), ids=("up", "down"))
def test_more_columns_than_shared_memory_holds(size, channels_last, schedule):
    """A tile's outputs then come in several lots, and the sums are the same bits."""
    x, state = torch.randn(1, 6, 3, 5), torch.random.get_rng_state()
    results = []
    for shared_floats in (8192, 300):
        torch.random.set_rng_state(state)
        results.append(compare(x, size, False, channels_last, schedule, shared_floats))
    assert torch.equal(*results)


@cuda_on_cpu.each_schedule
@LAYOUTS
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")), ids=str)
@pytest.mark.parametrize("case", EXACT)
def test_nan_and_inf(case, value, channels_last, schedule):
    align_corners, size = EXACT[case]
    x, coming = torch.randn(1, 3, 4, 5), torch.randn(1, 3, *size)
    x[0, 0, 1, 2] = x[0, 1, 3, 4] = coming[0, 0, 1, 2] = coming[0, 2, -1, -1] = value
    theirs = value_and_grad(lambda x: interpolate(x, size, align_corners), x, coming)
    ours = upsample(x, size, align_corners, channels_last, schedule)
    assert torch.equal(special(ours), special(theirs[0]))
    ours = gather(coming, (4, 5), align_corners, channels_last, schedule)
    assert torch.equal(special(ours), special(theirs[1]))
