"""upsample_bilinear and its gradient against the float64 interpolation, on every backend."""

import os

import pytest
import torch
import torch.nn.functional as F
from check import (
    INTERPRETER,
    NOT_COMPILED,
    bits_by_threads,
    check_differentiable,
    check_form,
    each_place,
    far_apart,
    layouts,
    special,
    value_and_grad,
)
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import fastseg
from fastseg.ops import upsample_bilinear

OP = "upsample_bilinear"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
pytestmark = pytest.mark.usefixtures("one_thread")

# name: (N, C, h, w), (H, W); small enough for the interpreter, one reason each
CASES = {
    "x8": ((1, 21, 5, 6), (40, 48)),  # the networks' usual factor: whole cells
    "x8 less one": ((1, 5, 5, 5), (33, 33)),  # 513 from 65: cells of 7 and 8 outputs
    "x32": ((1, 3, 2, 2), (64, 70)),  # FCN-32s: an input gathers from thousands of outputs
    "x1.5": ((2, 4, 6, 5), (9, 7)),  # cells of one and two outputs
    "same size": ((1, 4, 5, 7), (5, 7)),
    "same height": ((2, 3, 5, 4), (5, 11)),
    "down": ((1, 5, 9, 8), (4, 3)),  # some inputs are read by nobody: their gradient is 0
    "up and down": ((1, 3, 4, 9), (11, 4)),
    "one pixel": ((1, 7, 1, 1), (5, 6)),  # a single cell, its own neighbour
    "one row": ((1, 3, 1, 9), (7, 20)),
    "to one pixel": ((2, 3, 6, 6), (1, 1)),  # scale 0 with align_corners
    "one channel": ((2, 1, 3, 3), (6, 6)),  # channels_last looks contiguous
    "33 channels": ((1, 33, 3, 3), (6, 7)),  # one more than a vector or block of channels
    "wide": ((1, 2, 2, 70), (3, 150)),  # more columns than one program or block takes
}


def interpolate(x, size, align_corners=False):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def compare(x, size, align_corners, backend, device, **how):
    check_differentiable(
        lambda x: upsample_bilinear(x, size, align_corners),
        lambda x: interpolate(x, size, align_corners),
        x,
        backend,
        device,
        roundings=4,  # a product and a sum along each axis
        **how,
    )


@each_place(OP)
@pytest.mark.parametrize("align_corners", (False, True), ids=("half_pixel", "align_corners"))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, align_corners, backend, device):
    shape, size = CASES[case]
    compare(torch.randn(shape), size, align_corners, backend, device)


@each_place(OP)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ("x8 less one", "x32"))
def test_half_precision(case, dtype, backend, device):
    """Gradients of thousands of terms too: summed in float32 and rounded once."""
    shape, size = CASES[case]
    compare(torch.randn(shape).to(dtype), size, False, backend, device)


@each_place(OP)
def test_expanded_gradient(backend, device):
    shape, size = CASES["x1.5"]
    compare(torch.randn(shape), size, False, backend, device, expanded=True)


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize(
    "shape, size, dtype",
    [
        ((1, 21, 65, 65), (513, 513), torch.float32),
        ((1, 150, 17, 17), (129, 129), torch.bfloat16),
        ((2, 19, 97, 193), (193, 97), torch.float16),
    ],
)
def test_real_shapes(shape, size, dtype, backend, device):
    compare(torch.randn(shape).to(dtype), size, False, backend, device)


@each_place(OP)
def test_big_magnitudes(backend, device):
    """Sums of corners overflow float32, interpolated values do not."""
    compare(torch.randn(1, 4, 3, 4) * 1e38, (9, 11), False, backend, device)


@each_place(OP)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision_subnormals(dtype, backend, device):
    compare((torch.randn(1, 3, 4, 5) * torch.finfo(dtype).smallest_normal).to(dtype), (16, 20), False, backend, device)


# Powers of two as scales, so that every weight is exact, zeros included; and axes that keep their size.
EXACT = {
    "up": (False, (16, 20)),
    "aligned": (True, (13, 17)),
    "down": (False, (2, 5)),
    "same size": (False, (4, 5)),
    "same height": (False, (4, 20)),
    "same width": (True, (13, 5)),
}


@each_place(OP)
@pytest.mark.parametrize("case", EXACT)
def test_nan_and_inf(case, backend, device):
    """They go where F.interpolate on the CPU lets them go, forward and backward, and no further."""
    align_corners, size = EXACT[case]
    x, upstream = torch.randn(1, 3, 4, 5), torch.randn(1, 3, *size)
    for k, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[0, k, 1, 2] = x[0, k, 3, 4] = upstream[0, k, 1, 2] = upstream[0, k, -1, -1] = value
    wanted = value_and_grad(lambda x: interpolate(x, size, align_corners), x, upstream)
    x, upstream = x.to(device), upstream.to(device)
    with fastseg.use_backend(backend):
        results = value_and_grad(lambda x: upsample_bilinear(x, size, align_corners), x, upstream)
    assert torch.equal(special(results[0].cpu()), special(wanted[0]))
    assert torch.equal(special(results[1].cpu()), special(wanted[1]))


@each_place(OP)
def test_empty_batch_and_expanded_input(backend, device):
    x, upstream = torch.randn(1, 4, 3, 3, device=device), torch.randn(1, 4, 7, 7, device=device)
    with fastseg.use_backend(backend):
        value, grad = value_and_grad(lambda x: upsample_bilinear(x, 7), x[:0], upstream[:0])
        assert value.shape == (0, 4, 7, 7) and grad.shape == (0, 4, 3, 3)
        for axis in (0, 2, 3):
            one = x.narrow(axis, 0, 1)
            many = one.expand(*(3 if i == axis else -1 for i in range(4)))
            assert torch.equal(upsample_bilinear(many, 7), upsample_bilinear(many.contiguous(), 7))


@each_place(OP, without=[INTERPRETER])  # which copies whole storages
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, backend, device):
    x, upstream = torch.randn(2, 2, 2, 2).half().to(device), torch.randn(2, 2, 2, 2).half().to(device)
    with fastseg.use_backend(backend):
        near = value_and_grad(lambda x: upsample_bilinear(x, 2, True), x, upstream)
        far = value_and_grad(lambda x: upsample_bilinear(x, 2, True), far_apart(x, axis), far_apart(upstream, axis))
    assert torch.equal(near[0], far[0]) and torch.equal(near[1], far[1])


@each_place(OP, without=NOT_COMPILED)  # those make several copies
@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 10 * 2**30, reason="needs 10 GB")
def test_results_past_2_to_31_elements(backend, device, monkeypatch):
    monkeypatch.setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    )  # it would take longer than the op
    corners = torch.tensor([[[[1, 2], [3, 4]]] * 2], dtype=torch.float16, device=device)
    large = (32768, 32769)
    with fastseg.use_backend(backend):
        value = upsample_bilinear(corners, large, align_corners=True)
        assert value[0, 1, :: large[0] - 1, :: large[1] - 1].tolist() == [[1, 2], [3, 4]]
        del value
        grad = torch.ops.fastseg.upsample_bilinear_backward(corners, large, True, False)
        assert grad[0, 1, :: large[0] - 1, :: large[1] - 1].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_threads_share_the_work(layout):
    """Several chunks of rows, channels and images, whatever the number of cores: the same bits as one thread."""
    x, upstream = layouts(torch.randn(3, 5, 9, 40))[layout], layouts(torch.randn(3, 5, 130, 300))[layout]
    one, *more = bits_by_threads(lambda: value_and_grad(lambda x: upsample_bilinear(x, (130, 300)), x, upstream))
    for results in more:
        assert torch.equal(one[0], results[0]) and torch.equal(one[1], results[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 40, 12, 40))),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_random_shapes(shape, size, align_corners, dtype):
    compare(torch.randn(shape).to(dtype), size, align_corners, None, "cpu")  # None: the backend that a user gets


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize("size", ((7, 5), (2, 9)))
def test_gradcheck(size, align_corners):
    """In float64, which runs the reference, through the public function; and the gradient's gradient."""
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: upsample_bilinear(x, size, align_corners), x)
    assert torch.autograd.gradgradcheck(lambda x: upsample_bilinear(x, size, align_corners), x)


@each_place(OP)
def test_gradient_of_the_gradient(backend, device):
    """The op is linear: the gradient of <upstream, op(x)>'s gradient, by upstream, is op of what comes in."""
    x = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    upstream = torch.randn(1, 3, 9, 11, device=device, requires_grad=True)
    v = torch.randn_like(x)
    with fastseg.use_backend(backend):
        (grad,) = torch.autograd.grad(upsample_bilinear(x, (9, 11)), x, upstream, create_graph=True)
        (twice,) = torch.autograd.grad(grad, upstream, v)
        assert torch.equal(twice, upsample_bilinear(v, (9, 11)))


@each_place(OP)
@pytest.mark.parametrize("channels_last", (False, True))
def test_raw_ops_are_of_the_form_of_the_reference(channels_last, backend, device):
    x = layouts(torch.randn(2, 5, 4, 3).half())["sliced"]
    for op in (torch.ops.fastseg.upsample_bilinear, torch.ops.fastseg.upsample_bilinear_backward):
        check_form(op, (x, [2, 6], False, channels_last), backend, device)


def test_opcheck():
    for channels_last in (False, True):
        for x in (torch.randn(2, 5, 4, 6), layouts(torch.randn(2, 5, 4, 6))["sliced"]):
            torch.library.opcheck(torch.ops.fastseg.upsample_bilinear.default, (x, [9, 12], False, channels_last))
            backward = torch.ops.fastseg.upsample_bilinear_backward.default
            torch.library.opcheck(backward, (x, [2, 3], False, channels_last))


def test_compile_forward_and_backward():
    def f(x):
        return upsample_bilinear(x * 2, (9, 12)).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape in ((2, 5, 4, 6), (3, 5, 7, 8)):  # a second shape makes the sizes symbolic
        x, upstream = torch.randn(shape), torch.randn(*shape[:2], 9, 12)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            results = zip(value_and_grad(compiled, given, upstream), value_and_grad(f, given, upstream), strict=True)
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in results)


def test_export():
    class Upsample(torch.nn.Module):
        def forward(self, x):
            return upsample_bilinear(x, (9, 12))

    x, more, batch = torch.randn(2, 5, 4, 6), torch.randn(5, 5, 4, 6), torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Upsample(), (x,), dynamic_shapes={"x": {0: batch}}).module()
    assert torch.equal(exported(more), upsample_bilinear(more, (9, 12)))


def test_autocast_func_grad_and_inference_mode():
    x = torch.randn(1, 4, 3, 3)
    plain = value_and_grad(lambda x: upsample_bilinear(x, 6).square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_and_grad(lambda x: upsample_bilinear(x, 6).square().sum(), x)
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])
    assert torch.equal(torch.func.grad(lambda x: upsample_bilinear(x, 6).square().sum())(x), plain[1])
    with torch.inference_mode():
        inferred = upsample_bilinear(x.requires_grad_(), 6)
    assert not inferred.requires_grad and torch.equal(inferred, upsample_bilinear(x, 6))


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (([[1.0]], 3), TypeError, "input must be a floating-point tensor, got list"),
        ((torch.ones(1, 2, 3, 3, dtype=torch.int32), 3), TypeError, "got torch.int32"),
        ((torch.ones(2, 3, 3), 3), ValueError, r"\(N, C, h, w\).*got \(2, 3, 3\)"),
        ((torch.ones(1, 0, 3, 3), 3), ValueError, "C, h, w >= 1"),
        ((torch.ones(1, 2, 3, 0), 3), ValueError, "C, h, w >= 1"),
        ((torch.ones(1, 2, 3, 3), (3, 0)), ValueError, r"an int or two, \(H, W\), from 1 on, got \(3, 0\)"),
        ((torch.ones(1, 2, 3, 3), (3, 3, 3)), ValueError, "size must be an int or two"),
        ((torch.ones(1, 2, 3, 3), 2.5), ValueError, "size must be .* got 2.5"),
    ],
)
def test_wrong_arguments(arguments, error, says):
    with pytest.raises(error, match=f"upsample_bilinear: .*{says}"):
        upsample_bilinear(*arguments)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms():
    """vmap keeps the gradient. torch.compile knows no Function with a forward-mode derivative, so there is none: an
    error, not a tangent of zero."""
    x = torch.randn(1, 3, 4, 5)
    with pytest.raises(RuntimeError, match="jvp|forward"):
        torch.func.jvp(lambda x: upsample_bilinear(x, (7, 9)), (x,), (x,))
    many = torch.randn(3, 1, 2, 4, 5, requires_grad=True)
    mapped = torch.vmap(lambda x: upsample_bilinear(x, (7, 9)))(many)
    assert torch.equal(mapped[1], upsample_bilinear(many[1], (7, 9)))
    mapped.sum().backward()
    assert torch.equal(many.grad[0], many.grad[2]) and many.grad.sum().item() == pytest.approx(3 * 2 * 63, rel=1e-5)
