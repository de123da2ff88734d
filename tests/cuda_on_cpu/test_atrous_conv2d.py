"""atrous_conv2d's CUDA kernels, on the CPU, called as their ops call them."""

from typing import NamedTuple

import pytest
import torch
from check import assert_accurate, special

import cuda_on_cpu
from fastseg.ops import atrous_conv2d_compiled as compiled
from fastseg.ops import atrous_pyramid
from fastseg.ops.atrous_conv2d import backward_input_reference, backward_weight_reference, reference
from fastseg.ops.atrous_conv2d_plan import TILE, axes, branches, outputs_of, regions, tiles, turned
from fastseg.ops.atrous_pyramid import reference as pyramid_reference

kernel = cuda_on_cpu.Kernel("atrous_conv2d")
PLAIN = cuda_on_cpu.Schedule("plain", 0)
ROUNDINGS = 8  # of a short sum, where PyTorch may be exact by luck


class Case(NamedTuple):
    shape: tuple  # of the input
    outputs: int
    kernel: tuple = (3, 3)
    padding: tuple = (1, 1)
    dilation: tuple = (1, 1)
    stride: tuple = (1, 1)

    @property
    def how(self):
        """As the ops' schemas have it."""
        return self.stride, self.padding, self.dilation, 1

    @property
    def sides(self):
        return axes(self.shape[2:], self.kernel, self.stride, self.padding, self.dilation)

    @property
    def of_gradient(self):
        """The convolution that gives the input's gradient."""
        size, padding = turned(self.shape[2:], self.kernel, self.padding, self.dilation)
        shape = self.shape[0], self.outputs, *size
        return Case(shape, self.shape[1], self.kernel, padding, self.dilation)


# 4 or 8 channels are a whole vector, of float32 or half precision, and 16 or 32 a step; 128 pixels and 128 or 32
# outputs are a tile.
CASES = {
    "merged": Case((2, 5, 4, 3), 6, padding=(2, 2), dilation=(2, 2)),
    "1 x 1": Case((1, 24, 5, 3), 36, (1, 1), (0, 0)),
    "even kernel": Case((1, 4, 7, 5), 4, (4, 2), (2, 1), (1, 3)),
    "only padding at the edges": Case((1, 4, 5, 4), 4, (1, 2), (3, 4), (1, 1)),
    "taps in padding only": Case((2, 4, 3, 4), 5, (3, 3), (9, 9), (9, 9)),
    "stride 2": Case((2, 9, 9, 8), 8, stride=(2, 2)),
    "strides, rates": Case((3, 4, 14, 9), 4, padding=(6, 1), dilation=(6, 4), stride=(2, 3)),
    "two blocks": Case((1, 132, 3, 4), 36, (1, 1), (0, 0)),  # of both gradients
}
# Too many steps for slow builds, which see nothing in them that is not in the others.
LARGE = {
    "skipped": Case((1, 4, 8, 32), 8, padding=(8, 16), dilation=(8, 16)),
    "some skipped": Case((5, 3, 12, 15), 4, padding=(11, 2), dilation=(11, 2)),
    "5 x 5": Case((1, 4, 8, 9), 3, (5, 5), (6, 2), (3, 1)),
}


def nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous()


class Run:
    """The compiled kernels as their ops know them; `steps`: what the last launch executed."""

    def __init__(self, schedule):
        self.schedule, self.steps = schedule, None

    def convolve(self, input, weight, scale, bias, residual, table, stride, size, relu):
        output, steps = input.new_full((input.shape[0], *size[1:], size[0]), float("nan")), torch.zeros(1).long()
        none = input.new_empty(0)
        optional = none if scale is None else scale, none if bias is None else bias
        tensors = nhwc(input), weight, *optional, none if residual is None else nhwc(residual), table, output, steps
        kernel("atrous_conv2d", *tensors, *stride, int(relu), schedule=self.schedule)
        self.steps = steps.item()
        return output.permute(0, 3, 1, 2)

    def backward_weight(self, grad, input, table, stride, taps, count):
        gradient = input.new_full((taps, input.shape[1], grad.shape[1]), float("nan"))
        steps = torch.zeros(1).long()
        tensors = nhwc(grad), nhwc(input), table, gradient, steps
        kernel("atrous_conv2d_backward_weight", *tensors, *stride, count, schedule=self.schedule)
        self.steps = steps.item()
        return gradient


def up(n, each):
    return -(-n // each)


def planned_steps(case, x, all_outputs=None):
    """Of the tiles of a convolution, as the planner counts them."""
    vector, depth = 16 // x.element_size(), compiled.DEPTH // x.element_size()
    outputs = up(case.outputs, vector) * vector
    across = up(outputs, compiled.block(all_outputs or outputs))
    tap_tiles = sum(tiles(case.shape[0], y, x) * y.taps * x.taps for y, x in regions(case.shape[0], *case.sides))
    return tap_tiles * up(case.shape[1], depth) * across


def least_steps(case, x):
    """Of the weight's gradient, were each tap's sum whole."""
    vector, depth = 16 // x.element_size(), compiled.DEPTH // x.element_size()
    channels, outputs = (up(n, vector) * vector for n in (case.shape[1], case.outputs))
    rows, columns = ([stop - start for start, stop in (outputs_of(a, k) for k in range(a.kernel))] for a in case.sides)
    of_taps = sum(up(case.shape[0] * r * c, depth) for r in rows for c in columns)
    return of_taps * up(channels, 128) * up(outputs, compiled.block(outputs))


def random_tensors(case, dtype):
    """x, weight, scale, bias, residual, grad."""
    size = case.shape[0], case.outputs, *(axis.outputs for axis in case.sides)
    shapes = case.shape, (case.outputs, case.shape[1], *case.kernel), (case.outputs,), (case.outputs,), size, size
    return [torch.randn(shape).to(dtype) for shape in shapes]


def check(what, result, formula, tensors, *how):
    known = [
        formula(*(None if t is None else t.to(dtype) for t in tensors), *how)
        for dtype in (torch.float64, result.dtype, torch.float32)
    ]
    assert_accurate(what, result, *known, ROUNDINGS)


def compare(case, dtype, channels_last, schedule):
    x, weight, scale, bias, residual, grad = random_tensors(case, dtype)
    run = Run(schedule)
    tensors = x, weight, scale, bias, residual
    ours = compiled.forward(run.convolve, *tensors, *case.how, True, channels_last)
    check("output", ours, reference, tensors, *case.how, True, channels_last)
    assert run.steps == planned_steps(case, x)
    if case.stride == (1, 1):
        how = *case.how, case.shape[2:], channels_last
        ours = compiled.backward_input(run.convolve, grad, weight, *how)
        check("input's gradient", ours, backward_input_reference, (grad, weight), *how)
        assert run.steps == planned_steps(case.of_gradient, x)
    how = *case.how, case.kernel, channels_last
    ours = compiled.backward_weight(run.backward_weight, grad, x, *how)
    check("weight's gradient", ours, backward_weight_reference, (grad, x), *how)
    assert run.steps == least_steps(case, x)  # parts begin at whole steps


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, schedule):
    compare(CASES[case], torch.float32, True, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "case, dtype",
    (
        ("two blocks", torch.float16),
        ("merged", torch.bfloat16),
        ("stride 2", torch.float16),
    ),
    ids=str,
)
def test_half_precision(case, dtype, schedule):
    compare(CASES[case], dtype, False, schedule)


@cuda_on_cpu.needed
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("case", LARGE)
def test_many_steps(case, dtype):
    compare(LARGE[case], dtype, True, PLAIN)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("wanted", ("", "scale", "bias", "residual relu"))
def test_epilogue(wanted, schedule):
    case = CASES["only padding at the edges"]
    x, weight, scale, bias, residual, _ = random_tensors(case, torch.float32)
    chosen = ("scale", scale), ("bias", bias), ("residual", residual)
    tensors, relu = (x, weight, *(tensor if name in wanted else None for name, tensor in chosen)), "relu" in wanted
    ours = compiled.forward(Run(schedule).convolve, *tensors, *case.how, relu, True)
    check("output", ours, reference, tensors, *case.how, relu, True)


@cuda_on_cpu.needed
@pytest.mark.parametrize("value", (float("nan"), float("inf")), ids=str)
@pytest.mark.parametrize("case", ("merged", "some skipped", "only padding at the edges"))
def test_nan_and_inf(case, value):
    """They reach what they are a term of, and nothing else: neither other pixels of a tile nor channels filled up."""
    case = (CASES | LARGE)[case]
    x, weight, scale, bias, residual, grad = random_tensors(case, torch.float32)
    x[0, 1, 2, 0], grad[0, 2, 3, 0], residual[-1, 1, 3, 0], scale[0] = value, value, value, value
    run = Run(PLAIN)
    tensors = x, weight, scale, bias, residual
    ours = compiled.forward(run.convolve, *tensors, *case.how, True, True)
    assert torch.equal(special(ours), special(reference(*tensors, *case.how, True, True)))
    how = *case.how, case.shape[2:], True
    ours = compiled.backward_input(run.convolve, grad, weight, *how)
    assert torch.equal(special(ours), special(backward_input_reference(grad, weight, *how)))
    how = *case.how, case.kernel, True
    ours = compiled.backward_weight(run.backward_weight, grad, x, *how)
    reached = backward_weight_reference(1.0 - grad.isfinite().float(), torch.ones_like(x), *how)
    reached += backward_weight_reference(torch.ones_like(grad), 1.0 - x.isfinite().float(), *how)
    assert torch.equal(~ours.isfinite(), reached > 0)  # PyTorch may have 0 NaN where a tap reads padding; ours skip it


@cuda_on_cpu.each_schedule
def test_no_images(schedule):
    case = Case((0, 4, 3, 3), 4)
    x, weight, scale, bias, residual, grad = random_tensors(case, torch.float32)
    run = Run(schedule)
    assert compiled.forward(run.convolve, x, weight, scale, bias, residual, *case.how, True, True).shape == (0, 4, 3, 3)
    assert not compiled.backward_weight(run.backward_weight, grad, x, *case.how, case.kernel, True).any()


# Weights' (outputs, kernel) and rates of atrous_pyramid's branches; 32 outputs in all fit into narrow tiles.
PYRAMIDS = {
    "one": (((5, 3),), (7,)),
    "two": (((4, 1), (8, 3)), (1, 4)),
    "three": (((3, 3), (2, 5), (6, 1)), (6, 2, 3)),
    "four": (((12, 1), (12, 3), (12, 3), (12, 3)), (1, 3, 6, 9)),
    "five, one wide": (((4, 1), (4, 3), (132, 1), (4, 3), (5, 3)), (1, 2, 3, 8, 11)),
}


@cuda_on_cpu.needed
@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid(name):
    shapes, rates = PYRAMIDS[name]
    x, weights = torch.randn(2, 6, 9, 8), [torch.randn(o, 6, k, k) for o, k in shapes]
    scale, bias = torch.randn(2, sum(o for o, _ in shapes))
    tensors, run = (x, *weights, scale, bias), Run(PLAIN)

    def formula(x, *others):
        *weights, scale, bias = others
        return pyramid_reference(x, weights, scale, bias, rates, True, True)

    ours = compiled.pyramid(run.convolve, x, weights, scale, bias, rates, True, True)
    check("output", ours, formula, tensors)
    outputs = sum(up(o, 4) * 4 for o, _ in shapes)
    of_branches = zip(shapes, branches(x.shape[2:], weights, rates), rates, strict=True)
    cases = [Case(x.shape, o, (k, k), (r.padding, c.padding), (d, d)) for (o, k), (r, c), d in of_branches]
    assert run.steps == sum(planned_steps(case, x, outputs) for case in cases)


@cuda_on_cpu.needed
@pytest.mark.parametrize("side, rates, most", ((65, (12, 24, 36), 0.66), (33, (6, 12, 18), 0.70)))
def test_executed_work(side, rates, most):
    """ASPP's atrous branches: what the kernel executes, whole tiles, over the dense work."""
    run = Run(PLAIN)
    x, weights = torch.randn(8, 4, side, side), [torch.randn(4, 4, 3, 3) for _ in rates]
    result = compiled.pyramid(run.convolve, x, weights, None, None, rates, False, True)
    assert run.steps * TILE <= most * 9 * len(rates) * 8 * side**2
    assert run.steps == sum(planned_steps(Case(x.shape, 4, padding=(d, d), dilation=(d, d)), x) for d in rates)
    assert torch.allclose(result, atrous_pyramid(x, weights, rates), atol=1e-4)


@cuda_on_cpu.each_schedule
def test_the_same_bits(schedule):
    """However warps are scheduled; the weight's gradient is in parts."""
    case = Case((1, 4, 17, 16), 4, (1, 1), (0, 0))
    torch.manual_seed(0)
    x, weight, _, _, _, grad = random_tensors(case, torch.float32)
    results = []
    for each in (schedule, cuda_on_cpu.SCHEDULES[2]):
        run = Run(each)
        output = compiled.forward(run.convolve, x, weight, None, None, None, *case.how, False, True)
        gradient = compiled.backward_weight(run.backward_weight, grad, x, *case.how, case.kernel, True)
        results.append((output, gradient))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
