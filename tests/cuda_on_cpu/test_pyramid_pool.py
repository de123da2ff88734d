"""pyramid_pool's CUDA kernels, on the CPU."""

import pytest
import torch
from check import assert_accurate, layouts, special

import cuda_on_cpu
from fastseg.ops.layout import laid_out
from fastseg.ops.pyramid_pool import backward_reference, reference

kernel = cuda_on_cpu.Kernel("pyramid_pool")
LAYOUTS = pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
MODES = pytest.mark.parametrize("max", (False, True), ids=("avg", "max"))
SHARED_BYTES = 48 * 1024  # of a block
ROUNDINGS = 8  # a sum by rows, one by columns, one by segments; PyTorch may be exact by luck

# (shape, bins as h0, w0, h1, w1, ...)
CASES = {
    "pyramid": ((2, 3, 12, 13), (1, 1, 2, 2, 3, 3, 6, 6)),
    "overlapping cells": ((1, 5, 17, 11), (4, 3, 7, 5)),
    "more cells than pixels": ((1, 3, 3, 4), (5, 7, 2, 9)),
    "one pixel": ((1, 4, 1, 1), (1, 1, 3, 2)),
    "tall": ((1, 3, 40, 2), (1, 2)),
}
# Many channels, as whole vectors of float32 (4) and half precision (8), and not.
MANY = {
    "vectors": ((2, 72, 4, 5), (1, 1, 3, 2), True),
    "unaligned": ((2, 72, 4, 5), (1, 1, 3, 2), False),
    "odd": ((1, 67, 4, 5), (1, 1, 3, 2), False),
}


def storage(x):
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def given(x):
    """x as the driver takes it."""
    return storage(x), torch.tensor([x.storage_offset(), *x.shape, *x.stride()])


def cells(x, bins, dtype, channels_last):
    """An unwritten (N, C, S), dense in the order that the op gives it."""
    count = sum(h * w for h, w in zip(bins[::2], bins[1::2], strict=True))
    value = float("nan") if dtype.is_floating_point else -7
    if channels_last:
        return torch.full((x.shape[0], count, x.shape[1]), value, dtype=dtype).mT
    return torch.full((*x.shape[:2], count), value, dtype=dtype)


def pool(x, bins, max, channels_last, schedule, vectors=False, shared_bytes=SHARED_BYTES):
    output = cells(x, bins, x.dtype, channels_last)
    indices = cells(x, bins, torch.int64, channels_last) if max else torch.empty(0, dtype=torch.int64)
    how = max, channels_last, vectors, shared_bytes
    kernel("pyramid_pool", *given(x), torch.tensor(bins), storage(output), storage(indices), *how, schedule=schedule)
    return output, indices


def backward(grad, indices, bins, max, size, channels_last, schedule, vectors=False, shared_bytes=SHARED_BYTES):
    start = 0.0 if max else float("nan")
    result = laid_out(torch.full((*grad.shape[:2], *size), start, dtype=grad.dtype), channels_last)
    arrays = *given(grad), *given(indices), torch.tensor(bins), torch.tensor(result.shape), storage(result)
    kernel("pyramid_pool_backward", *arrays, max, channels_last, vectors, shared_bytes, schedule=schedule)
    return result


def check(x, bins, max, channels_last, schedule, **how):
    dtypes = torch.float64, x.dtype, torch.float32
    ours, indices = pool(x, bins, max, channels_last, schedule, **how)
    known = [reference(x.to(dtype), bins, max, channels_last) for dtype in dtypes]
    assert_accurate("value", ours, *(value for value, _ in known), ROUNDINGS)
    assert torch.equal(indices, known[0][1])
    grad = torch.randn(ours.shape).to(x.dtype)
    known = [backward_reference(grad.to(dtype), indices, bins, max, x.shape[2:], channels_last) for dtype in dtypes]
    ours = backward(grad, indices, bins, max, x.shape[2:], channels_last, schedule, **how)
    assert_accurate("gradient", ours, *known, ROUNDINGS)
    return ours


@cuda_on_cpu.each_schedule
@MODES
@pytest.mark.parametrize("case, channels_last", [*((case, False) for case in CASES), ("pyramid", True), ("tall", True)])
def test_value_and_gradient(case, max, channels_last, schedule):
    shape, bins = CASES[case]
    check(torch.randn(shape), bins, max, channels_last, schedule)


@cuda_on_cpu.each_schedule
@MODES
def test_more_segments_than_arguments_hold(max, schedule):
    """Each row is one then."""
    check(torch.randn(1, 1, 514, 2), (257, 1, 2, 2), max, False, schedule)


@cuda_on_cpu.each_schedule
@MODES
@pytest.mark.parametrize(
    "case, dtype",
    [(case, dtype) for case in MANY for dtype in (torch.float32, torch.float16)] + [("vectors", torch.bfloat16)],
    ids=str,
)
def test_vectors(case, dtype, max, schedule):
    shape, bins, vectors = MANY[case]
    check(laid_out(torch.randn(shape).to(dtype), True), bins, max, True, schedule, vectors=vectors)


@cuda_on_cpu.each_schedule
@LAYOUTS
@MODES
def test_more_columns_than_shared_memory_holds(max, channels_last, schedule):
    """They then come in several lots, and give the same bits."""
    x, state = torch.randn(2, 5, 6, 29), torch.random.get_rng_state()
    results = []
    for shared_bytes in (SHARED_BYTES, 100):
        torch.random.set_rng_state(state)
        how = {"shared_bytes": shared_bytes}
        results.append((*pool(x, (2, 1, 3, 4), max, channels_last, schedule, **how),))
        results[-1] += (check(x, (2, 1, 3, 4), max, channels_last, schedule, **how),)
    assert all(map(torch.equal, *results))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("layout, channels_last", [("sliced", True), ("transposed", False)])
def test_strides(layout, channels_last, schedule):
    bins = (1, 1, 3, 2)
    x = layouts(torch.randn(2, 5, 7, 6))[layout]
    check(x, bins, False, channels_last, schedule)
    _, indices = pool(x, bins, True, channels_last, schedule)
    for grad in torch.randn(2, 7, 5).mT, torch.randn(1, 5, 1).expand(2, 5, 7):
        ours = backward(grad, indices, bins, True, (7, 6), channels_last, schedule)
        assert torch.allclose(ours, backward_reference(grad, indices, bins, True, (7, 6), channels_last))


@cuda_on_cpu.each_schedule
@LAYOUTS
def test_equal_maxima(channels_last, schedule):
    """The first counts, wherever segments and cells end; cells with the same maximum add their gradients up."""
    x = torch.randint(0, 2, (2, 6, 9, 8)).float()
    check(x, (1, 1, 2, 3, 4, 4), True, channels_last, schedule)
    check(torch.zeros(1, 3, 20, 7), (1, 1, 2, 3), True, channels_last, schedule)


@cuda_on_cpu.each_schedule
@MODES
@pytest.mark.parametrize("value, channels_last", [(float("nan"), True), (-float("inf"), False)], ids=str)
def test_nan_and_inf(value, max, channels_last, schedule):
    """They reach their own cells. Of several NaNs the last counts; -inf is a maximum, too."""
    bins = (1, 1, 3, 3, 2, 5)
    x = torch.randn(1, 3, 20, 7)
    x[0, 2] = value
    x[0, 0, 3, 1] = x[0, 0, 17, 4] = x[0, 0, 5, 6] = x[0, 1, 19, 0] = value
    ours, indices = pool(x, bins, max, channels_last, schedule)
    theirs, their_indices = reference(x, bins, max, channels_last)
    assert torch.equal(special(ours), special(theirs)) and torch.equal(indices, their_indices)
    grad = torch.randn(ours.shape)
    grad[0, 1, 4] = value
    ours = backward(grad, indices, bins, max, (20, 7), channels_last, schedule)
    assert torch.equal(special(ours), special(backward_reference(grad, indices, bins, max, (20, 7), channels_last)))
