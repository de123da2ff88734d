"""pyramid_conv2d's CUDA kernels, on the CPU."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from check import assert_accurate, layouts, special

import cuda_on_cpu
from fastseg.ops.pyramid_conv2d import backward_slab_reference, reference
from fastseg.ops.pyramid_conv2d_matrix import interpolation_matrix

kernel = cuda_on_cpu.Kernel("pyramid_conv2d")
SHARED_BYTES = 48 * 1024  # of a block
ROUNDINGS = 8  # of a short sum, where PyTorch may be exact by luck


class Case(NamedTuple):
    shape: tuple  # of the input
    outputs: int
    bins: tuple  # h0, w0, h1, w1, ...
    kernel: tuple = (3, 3)
    padding: tuple = (1, 1)
    align_corners: bool = False

    @property
    def sizes(self):
        """Of the output."""
        return tuple(n + 2 * p - k + 1 for n, k, p in zip(self.shape[2:], self.kernel, self.padding, strict=True))

    @property
    def cells(self):
        return sum(h * w for h, w in zip(self.bins[::2], self.bins[1::2], strict=True))

    def call(self, channels_last, shared_bytes=SHARED_BYTES):
        """As the driver takes it."""
        axes = zip(self.shape[2:], self.kernel, self.padding, strict=True)
        return torch.tensor([self.align_corners, channels_last, shared_bytes, *(n for axis in axes for n in axis)])


# 4 or 8 channels are a whole vector, of float32 or half precision, and 16 or 32 a step; 128 pixels and 128 or 32
# outputs are a tile.
CASES = {
    "pyramid": Case((1, 8, 7, 6), 8, (1, 1, 2, 2, 3, 3)),
    "two images, align_corners": Case((2, 5, 4, 5), 3, (2, 3, 1, 4), align_corners=True),
    "1 x 1": Case((1, 3, 5, 4), 5, (1, 1, 4, 2), (1, 1), (0, 0)),
    "padding beyond the image": Case((1, 3, 3, 2), 2, (2, 1), (3, 2), (4, 3)),
    "no padding": Case((1, 20, 6, 8), 4, (3, 3), (5, 4), (0, 0), True),
    "more cells than pixels": Case((1, 4, 1, 2), 4, (3, 5), (3, 3), (1, 1)),
    "several tiles of pixels": Case((2, 3, 13, 11), 6, (2, 2)),
    "sums in parts": Case((2, 31, 3, 4), 5, (2, 1)),
}
# Wide tiles, of which the last is not full.
WIDE = Case((1, 12, 6, 7), 138, (2, 2, 1, 1))


def given(x):
    """x as the driver takes it: any strides."""
    storage = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return storage, torch.tensor([x.storage_offset(), *x.shape, *x.stride()])


def whole_vectors(x):
    """x with zeros added to the end of its last axis up to whole vectors of 16 bytes, dense."""
    return F.pad(x, (0, -x.shape[-1] % (16 // x.element_size()))).contiguous()


def forward(case, x, weight, slab, bias, channels_last, schedule):
    n, outputs = x.shape[0], weight.shape[0]
    shape = (n, *case.sizes, outputs) if channels_last else (n, outputs, *case.sizes)
    output = torch.full(shape, float("nan"), dtype=x.dtype)
    arrays = whole_vectors(x.permute(0, 2, 3, 1)), *given(weight), whole_vectors(slab)
    arrays += x.new_empty(0) if bias is None else bias, output
    kernel("pyramid_conv2d", *arrays, torch.tensor(case.bins), case.call(channels_last), schedule=schedule)
    return output.permute(0, 3, 1, 2) if channels_last else output


def backward(case, grad, schedule, shared_bytes=SHARED_BYTES):
    slab = torch.full((grad.shape[0], case.cells, *case.kernel, grad.shape[1]), float("nan"), dtype=grad.dtype)
    call = torch.tensor(case.bins), case.call(False, shared_bytes)
    kernel("pyramid_conv2d_backward_slab", *given(grad), slab, *call, schedule=schedule)
    return slab


def random_tensors(case, dtype):
    """x, weight, slab, bias, grad."""
    x, weight = torch.randn(case.shape), torch.randn(case.outputs, case.shape[1], *case.kernel)
    slab, bias = torch.randn(case.shape[0], case.cells, *case.kernel, case.outputs), torch.randn(case.outputs)
    return [t.to(dtype) for t in (x, weight, slab, bias, torch.randn(case.shape[0], case.outputs, *case.sizes))]


def convolved(case, dtype, rounded, x, weight, slab, bias):
    """The op in `dtype`, with the interpolation's weights rounded as the kernels round them."""
    x, weight, slab, bias = (None if t is None else t.to(dtype) for t in (x, weight, slab, bias))
    known = case.bins, case.shape[2:], case.kernel, case.padding, case.align_corners
    matrix = interpolation_matrix(*known, rounded, x.device).to(dtype)
    product = (matrix @ slab.flatten(1, 3)).mT.unflatten(2, case.sizes)
    return F.conv2d(x, weight, bias, padding=case.padding) + product


def check_forward(case, tensors, channels_last, schedule):
    dtype = tensors[0].dtype
    ours = forward(case, *tensors, channels_last, schedule)
    known = [convolved(case, wide, dtype, *tensors) for wide in (torch.float64, dtype, torch.float32)]
    assert_accurate("output", ours, *known, ROUNDINGS)


def check_backward(case, grad, schedule, **how):
    known = case.bins, case.kernel, case.padding, case.shape[2:], case.align_corners
    dtypes = torch.float64, grad.dtype, torch.float32
    ours = backward(case, grad, schedule, **how)
    theirs = [backward_slab_reference(grad.to(dtype), *known) for dtype in dtypes]
    assert_accurate("slab's gradient", ours, *theirs, ROUNDINGS)
    return ours


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "case, channels_last",
    [(case, i % 2 == 0) for i, case in enumerate(CASES)] + [("pyramid", False)],
)
def test_value(case, channels_last, schedule):
    check_forward(CASES[case], random_tensors(CASES[case], torch.float32)[:4], channels_last, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_slab(case, schedule):
    grad = random_tensors(CASES[case], torch.float32)[4]
    for layout in ("channels_last", "sliced"):
        check_backward(CASES[case], layouts(grad)[layout], schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_wide_tiles(dtype, schedule):
    *tensors, grad = random_tensors(WIDE, dtype)
    check_forward(WIDE, tensors, dtype == torch.float16, schedule)
    check_backward(WIDE, grad, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "case, dtype",
    [("pyramid", torch.bfloat16), ("no padding", torch.float16), ("several tiles of pixels", torch.float16)],
    ids=str,
)
def test_half_precision(case, dtype, schedule):
    *tensors, grad = random_tensors(CASES[case], dtype)
    check_forward(CASES[case], tensors, dtype == torch.bfloat16, schedule)
    check_backward(CASES[case], grad, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("layout", ("channels_last", "sliced"))
def test_strides_of_the_weight(layout, schedule):
    """It comes as the first channels of a larger one."""
    case = Case((1, 20, 3, 4), 34, (1, 2))
    x, weight, *others, _ = random_tensors(case, torch.float32)
    check_forward(case, (x, layouts(weight)[layout], *others), True, schedule)


@cuda_on_cpu.each_schedule
def test_without_bias(schedule):
    case = CASES["pyramid"]
    x, weight, slab, *_ = random_tensors(case, torch.float32)
    check_forward(case, (x, weight, slab, None), True, schedule)


@cuda_on_cpu.each_schedule
def test_more_pixels_than_shared_memory_holds(schedule):
    """They then come in several lots, and the sums are the same bits."""
    case = Case((1, 3, 3, 40), 5, (2, 3, 1, 1))
    grad = random_tensors(case, torch.float32)[4]
    assert torch.equal(check_backward(case, grad, schedule), check_backward(case, grad, schedule, shared_bytes=300))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("value", (float("nan"), float("inf")), ids=str)
def test_nan_and_inf_of_the_input(value, schedule):
    """They reach what they are a term of, and neither other pixels nor, from an image's edge, the other edge."""
    case = CASES["two images, align_corners"]
    x, weight, slab, bias, _ = random_tensors(case, torch.float32)
    x[0, 1, 2, 4] = x[1, 4, 0, 0] = value
    ours = forward(case, x, weight, slab, bias, False, schedule)
    how = case.bins, case.padding, case.align_corners, False
    assert torch.equal(special(ours), special(reference(x, weight, slab, bias, *how)))
