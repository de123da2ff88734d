"""deconv2d's CUDA kernels, on the CPU."""

from typing import NamedTuple

import pytest
import torch
from check import assert_accurate, layouts, special

import cuda_on_cpu
from fastseg.ops.deconv2d import backward_input_reference, backward_weight_reference, reference
from fastseg.ops.layout import laid_out

kernel = cuda_on_cpu.Kernel("deconv2d")
LAYOUTS = pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
ROUNDINGS = 8  # of a short sum, where PyTorch may be exact by luck


class Case(NamedTuple):
    shape: tuple  # of the input
    outputs: int
    kernel: tuple
    stride: tuple
    dilation: tuple = (1, 1)
    groups: int = 1
    crop: tuple | None = None  # the window, if not all of the output
    extras: bool = False  # bias and skip
    multiprocessors: int = 132  # to keep busy
    channels_last: bool | None = None  # if one layout is enough

    @property
    def window(self):
        sizes = zip(self.shape[2:], self.stride, self.kernel, self.dilation, strict=True)
        return self.crop or (0, 0, *((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in sizes))

    @property
    def how(self):
        """As the ops' schemas have it."""
        return self.stride, self.dilation, self.groups, self.window


# 4 or 8 channels are a whole vector, of float32 or half precision; 128 rows and 128 or 32 columns are a tile.
CASES = {
    "k 4, s 2": Case((2, 5, 5, 6), 6, (4, 4), (2, 2)),
    "k 8, s 4": Case((1, 3, 3, 2), 2, (8, 8), (4, 4), channels_last=True),
    "kernel below stride": Case((1, 3, 3, 4), 4, (2, 3), (3, 5), channels_last=True),
    "k 5, s 2, odd crop": Case((1, 3, 3, 4), 5, (5, 5), (2, 2), crop=(1, 2, 6, 7), extras=True),
    "dilation 2, stride 3": Case((1, 3, 3, 4), 5, (3, 4), (3, 3), (2, 2), channels_last=False),
    "dilation 2, stride 2": Case((1, 3, 3, 4), 8, (3, 3), (2, 2), (2, 2), extras=True, channels_last=True),
    "groups": Case((2, 6, 4, 3), 4, (4, 4), (2, 2), groups=2, extras=True),
    "1 x 1": Case((1, 2, 1, 1), 3, (1, 1), (1, 1), extras=True, channels_last=False),
    "two axes": Case((1, 8, 4, 5), 8, (4, 6), (2, 3), crop=(3, 4, 5, 7), extras=True),
    "beyond the output": Case((1, 4, 3, 3), 3, (3, 3), (2, 2), crop=(1, 1, 8, 7), extras=True, channels_last=True),
    "one row": Case((1, 3, 4, 5), 3, (6, 6), (4, 4), crop=(9, 3, 1, 2), channels_last=False),
    "depthwise, k 4, s 2": Case((2, 8, 9, 4), 8, (4, 4), (2, 2), groups=8, crop=(1, 1, 17, 7), extras=True),
    "depthwise, many rows": Case((1, 8, 9, 3), 8, (4, 3), (2, 2), groups=8, extras=True, multiprocessors=0),
    "depthwise, k 5, s 2": Case((1, 5, 5, 4), 5, (5, 5), (2, 2), groups=5, multiprocessors=0, channels_last=True),
    "depthwise, kernel below stride": Case((1, 5, 3, 4), 5, (2, 3), (3, 5), groups=5, extras=True, channels_last=False),
    "depthwise, dilation": Case((1, 5, 3, 4), 5, (3, 3), (2, 2), (2, 3), groups=5, extras=True, channels_last=True),
}
# Several tiles of rows and columns, and sums in parts; then wide tiles of gradients.
LARGE = {
    "narrow gradients": Case((1, 20, 12, 11), 33, (2, 2), (2, 2), extras=True),
    "wide gradients": Case((1, 40, 6, 6), 8, (3, 3), (1, 1)),
}
# Where taps are missing in every way.
SPECIAL = ["k 5, s 2, odd crop", "kernel below stride"]
SPECIAL += ["depthwise, kernel below stride", "depthwise, many rows", "depthwise, k 5, s 2"]


def storage(x):
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def given(*tensors):
    """Each as the driver takes it."""
    return [a for x in tensors for a in (storage(x), torch.tensor([x.storage_offset(), *x.shape, *x.stride()]))]


def run(function, case, arrays, result, channels_last, schedule):
    """`result`, a dense tensor, filled by a function of the driver."""
    top, left, height, width = case.window
    call = [case.shape[0], case.groups, case.shape[1], case.outputs, channels_last, case.multiprocessors]
    for axis, size, out, start in zip((0, 1), case.shape[2:], (height, width), (top, left), strict=True):
        call += [size, out, case.kernel[axis], case.stride[axis], case.dilation[axis], start]
    result.fill_(float("nan"))
    kernel(function, *arrays, storage(result), torch.tensor(call), schedule=schedule)
    return result


def forward(case, x, weight, bias, skip, channels_last, schedule):
    none = x.new_empty(0)
    arrays = *given(x, weight), none if bias is None else bias, none if skip is None else storage(skip)
    result = laid_out(x.new_empty(case.shape[0], case.outputs, *case.window[2:]), channels_last)
    return run("deconv2d", case, arrays, result, channels_last, schedule)


def backward_input(case, grad, weight, channels_last, schedule):
    result = laid_out(grad.new_empty(case.shape), channels_last)
    return run("deconv2d_backward_input", case, given(grad, weight), result, channels_last, schedule)


def backward_weight(case, grad, x, channels_last, schedule):
    result = grad.new_empty(case.shape[1], case.outputs // case.groups, *case.kernel)
    return run("deconv2d_backward_weight", case, given(grad, x), result, channels_last, schedule)


def random_tensors(case, dtype, channels_last):
    """x, weight, bias, skip, grad."""
    output = case.shape[0], case.outputs, *case.window[2:]
    x, weight = torch.randn(case.shape), torch.randn(case.shape[1], case.outputs // case.groups, *case.kernel)
    bias, skip = (torch.randn(case.outputs), torch.randn(output)) if case.extras else (None, None)
    x, skip, grad = (None if t is None else laid_out(t, channels_last) for t in (x, skip, torch.randn(output)))
    return [None if t is None else t.to(dtype) for t in (x, weight, bias, skip, grad)]


def unaligned(x):
    """x, as dense, one element after the 16 bytes where vectors begin."""
    return x.new_empty(x.numel() + 1).as_strided(x.shape, x.stride(), 1).copy_(x)


def check(what, result, formula, tensors, *how):
    known = [
        formula(*(None if t is None else t.to(dtype) for t in tensors), *how)
        for dtype in (torch.float64, result.dtype, torch.float32)
    ]
    assert_accurate(what, result, *known, ROUNDINGS)


def compare(case, channels_last, schedule, x, weight, bias, skip, grad):
    how = channels_last, schedule
    ours = forward(case, x, weight, bias, skip, *how)
    check("output", ours, reference, (x, weight, bias, skip), *case.how, channels_last)
    ours = backward_input(case, grad, weight, *how)
    check("input's gradient", ours, backward_input_reference, (grad, weight), *case.how, case.shape[2:], channels_last)
    ours = backward_weight(case, grad, x, *how)
    check("weight's gradient", ours, backward_weight_reference, (grad, x), *case.how, case.kernel)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "case, channels_last",
    [(name, last) for name, case in CASES.items() for last in (False, True) if case.channels_last in (None, last)],
)
def test_value_and_gradients(case, channels_last, schedule):
    compare(CASES[case], channels_last, schedule, *random_tensors(CASES[case], torch.float32, channels_last))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("case", LARGE)
def test_several_tiles(case, dtype, schedule):
    channels_last = case == "wide gradients"
    compare(LARGE[case], channels_last, schedule, *random_tensors(LARGE[case], dtype, channels_last))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "case, dtype",
    (
        ("k 5, s 2, odd crop", torch.float16),
        ("two axes", torch.bfloat16),
        ("depthwise, k 4, s 2", torch.float16),
        ("depthwise, k 5, s 2", torch.bfloat16),
        ("depthwise, many rows", torch.bfloat16),
    ),
    ids=str,
)
def test_half_precision(case, dtype, schedule):
    channels_last = dtype == torch.float16
    compare(CASES[case], channels_last, schedule, *random_tensors(CASES[case], dtype, channels_last))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("layout", ("sliced", "transposed", "unaligned"))
@pytest.mark.parametrize("case", ("two axes", "depthwise, k 4, s 2"))
def test_strides(case, layout, schedule):
    x, weight, bias, skip, grad = random_tensors(CASES[case], torch.float32, True)
    x, weight, grad = ((layouts(t) | {"unaligned": unaligned(t)})[layout] for t in (x, weight, grad))
    compare(CASES[case], True, schedule, x, weight, bias, skip, grad)


@cuda_on_cpu.each_schedule
@LAYOUTS
def test_diagonal_weight(channels_last, schedule):
    """As `simplify` makes it: a view of the weight of one group."""
    case = CASES["depthwise, k 4, s 2"]
    x, _, *others = random_tensors(case, torch.float32, channels_last)
    weight = torch.randn(8, 8, 4, 4).diagonal().permute(2, 0, 1)[:, None]
    compare(case, channels_last, schedule, x, weight, *others)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("value, channels_last", ((float("nan"), False), (float("inf"), True)))
@pytest.mark.parametrize("case", SPECIAL)
def test_nan_and_inf(case, value, channels_last, schedule):
    """They reach what they are a term of, and nothing else: neither other phases nor padded channels."""
    case = CASES[case]
    x, weight, bias, skip, grad = random_tensors(case, torch.float32, channels_last)
    x[0, 1, 1, 2] = grad[0, 2, 3, 4] = value
    ours = forward(case, x, weight, bias, skip, channels_last, schedule)
    assert torch.equal(special(ours), special(reference(x, weight, bias, skip, *case.how, channels_last)))
    ours = backward_input(case, grad, weight, channels_last, schedule)
    theirs = backward_input_reference(grad, weight, *case.how, case.shape[2:], channels_last)
    assert torch.equal(special(ours), special(theirs))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("groups", (1, 4))
def test_weight_gradient_of_no_images(groups, schedule):
    case = Case((0, 4, 3, 3), 4, (4, 4), (2, 2), groups=groups)
    x, _, _, _, grad = random_tensors(case, torch.float32, False)
    assert not backward_weight(case, grad, x, False, schedule).any()


@cuda_on_cpu.each_schedule
def test_the_same_bits(schedule):
    """However warps are scheduled; sums are in parts."""
    case = Case((1, 5, 12, 12), 5, (4, 4), (2, 2))
    torch.manual_seed(0)
    x, weight, _, _, grad = random_tensors(case, torch.float32, True)
    first = cuda_on_cpu.SCHEDULES[2]
    for op, tensors in ((backward_input, (grad, weight)), (backward_weight, (grad, x))):
        assert torch.equal(op(case, *tensors, True, schedule), op(case, *tensors, True, first))
