"""pyramid_pool and its gradients against F.adaptive_avg_pool2d and F.adaptive_max_pool2d, on every backend."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check import (
    INTERPRETER,
    NOT_COMPILED,
    assert_accurate,
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
from fastseg.ops import pyramid_pool
from fastseg.ops.pyramid_pool import _why_not_backward, _why_not_forward

OP = "pyramid_pool"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STOCK = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}
PSPNET = (1, 2, 3, 6)
each_mode = pytest.mark.parametrize("mode", STOCK)
pytestmark = pytest.mark.usefixtures("one_thread")

FEW = (1, 3)  # of 10 cells: each bin takes the interpreter long
# name: (shape, bins); small enough for the interpreter, one reason each.
CASES = {
    "divisible": ((2, 5, 4, 6), (1, 2)),  # no cell overlaps another
    "overlapping": ((1, 5, 5, 7), (2, 3)),
    "one bin of one cell": ((1, 3, 5, 4), (1,)),
    "rectangles": ((1, 3, 3, 5), ((1, 4), (2, 3))),
    "the map's own size": ((1, 3, 2, 3), ((2, 3), 2)),
    "larger than the map": ((1, 3, 2, 3), (4, (1, 5))),  # a pixel lies in many cells
    "one pixel": ((2, 3, 1, 1), FEW),
    "one row": ((1, 4, 1, 11), FEW),
    "one column": ((1, 4, 11, 1), (1, 2)),
    "a bin twice": ((1, 3, 3, 4), (2, 1, 2)),
    "many bins": ((1, 1, 2, 3), (1, 2, 1, 1, 1)),
    "one channel": ((2, 1, 3, 4), (1, 2)),  # channels_last looks contiguous
    "33 channels": ((1, 33, 3, 4), (1, 2)),  # one more than a vector or block
    "long rows": ((1, 3, 2, 131), (1, 3)),
}


def in_a_row(pooled):
    return torch.cat([cells.flatten(2) for cells in pooled], 2)


def ours(bins, mode):
    return lambda x: in_a_row(pyramid_pool(x, bins, mode))


def stock(bins, mode):
    return lambda x: in_a_row([STOCK[mode](x, bin) for bin in bins])


def some_layouts(x, backend, device):
    """All, but for the slow interpreter."""
    forms = list(layouts(x.to(device)).values())
    return forms[1:2] if (backend, device) == INTERPRETER else forms


def compare(case, mode, backend, device, dtype=torch.float32, **how):
    shape, bins = case
    x = torch.randn(shape).to(dtype)
    check_differentiable(ours(bins, mode), stock(bins, mode), x, backend, device, roundings=4, **how)


@each_place(OP)
@each_mode
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, mode, backend, device):
    compare(CASES[case], mode, backend, device)


@each_place(OP)
@each_mode
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ("overlapping", "larger than the map", "33 channels"))
def test_half_precision(case, dtype, mode, backend, device):
    compare(CASES[case], mode, backend, device, dtype)


@each_place(OP)
@each_mode
def test_expanded_gradient(mode, backend, device):
    compare(CASES["overlapping"], mode, backend, device, expanded=True)


@each_place(OP, without=NOT_COMPILED)
@each_mode
@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 5, 12, 18), torch.float32),  # no cell overlaps another
        ((1, 5, 13, 11), torch.float32),
        ((1, 4, 1, 23), torch.float32),
        ((2, 3, 3, 2), torch.float32),
        ((1, 70, 60, 60), torch.float32),
        ((2, 40, 63, 97), torch.bfloat16),  # sums of thousands
        ((1, 40, 65, 129), torch.float16),
        ((8, 300, 13, 16), torch.float32),
    ],
)
def test_real_shapes(shape, dtype, mode, backend, device):
    compare((shape, PSPNET), mode, backend, device, dtype)


@each_place(OP, without=[INTERPRETER])  # it takes long there
def test_means_of_what_is_alike(backend, device):
    """Exact counts: the mean of ones is one, whatever the count, also in half precision and of more than 2048."""
    for dtype in DTYPES:
        with fastseg.use_backend(backend):
            for cells in pyramid_pool(torch.ones(1, 3, 53, 47, dtype=dtype, device=device), (1, 2, 3, 6, 7)):
                assert cells.dtype == dtype and torch.equal(cells, torch.ones_like(cells))


@each_place(OP)
def test_equal_maxima(backend, device):
    """The gradient goes to the first, in every layout."""
    x, upstream = torch.randint(3, (1, 4, 5, 7)).float(), torch.randint(1, 9, (1, 4, 10)).float()
    x[0, 2], x[0, 3] = 0.0, -torch.inf
    wanted = value_and_grad(stock(FEW, "max"), x, upstream)
    for given in some_layouts(x, backend, device):
        with fastseg.use_backend(backend):
            got = value_and_grad(ours(FEW, "max"), given, upstream.to(device))
        assert all(torch.equal(y.cpu(), truth) for y, truth in zip(got, wanted, strict=True))


@each_place(OP)
@each_mode
def test_nan_and_inf(mode, backend, device):
    """They reach the cells over them, and the pixels under them, and no other; of several NaN the last is largest."""
    x, upstream = torch.randn(1, 4, 5, 7), torch.randn(1, 4, 10)
    for c, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[0, c, 1, 2] = x[0, c, 1, 3] = x[0, c, 4, 6] = upstream[0, c, 3] = upstream[0, c, 6] = value
    x[0, 3, 0, 0], x[0, 3, 4, 6] = float("inf"), -float("inf")
    wanted = value_and_grad(stock(FEW, mode), x, upstream)
    for given in some_layouts(x, backend, device):
        with fastseg.use_backend(backend):
            got = value_and_grad(ours(FEW, mode), given, upstream.to(device))
            _, indices = torch.ops.fastseg.pyramid_pool(given, [1, 1, 3, 3], mode == "max", False)
        assert all(torch.equal(special(y.cpu()), special(truth)) for y, truth in zip(got, wanted, strict=True))
        if mode == "max":
            places = [F.adaptive_max_pool2d(x, b, return_indices=True)[1].flatten(2) for b in FEW]
            assert torch.equal(indices.cpu(), torch.cat(places, 2))
    assert got[0].isnan().any() and got[1].isnan().any()


@each_place(OP)
@pytest.mark.parametrize("scale", (60000, 1e-6))
def test_big_and_small_magnitudes(scale, backend, device):
    """Sums far beyond float16, of means within it, and subnormals."""
    x, functions = (torch.rand(1, 3, 16, 15) * scale).half(), (ours((1, 2), "avg"), stock((1, 2), "avg"))
    check_differentiable(*functions, x, backend, device, roundings=4)


@each_place(OP)
@each_mode
def test_empty_batch_and_expanded_input(mode, backend, device):
    x, upstream = torch.randn(2, 4, 3, 2, device=device), torch.randn(2, 4, 10, device=device)
    with fastseg.use_backend(backend):
        value, grad = value_and_grad(ours(FEW, mode), x[:0], upstream[:0])
        assert value.shape == (0, 4, 10) and grad.shape == (0, 4, 3, 2)
        for axis in (1, 3) if (backend, device) == INTERPRETER else range(4):
            one = x.narrow(axis, 0, 1)
            many = one.expand(*(3 if i == axis else -1 for i in range(4)))
            torch.testing.assert_close(ours((2,), mode)(many), ours((2,), mode)(many.contiguous()))


@each_place(OP, without=[INTERPRETER])  # which copies whole storages
@each_mode
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, mode, backend, device):
    x = torch.randn(2, 2, 2, 2).half().to(device)
    with fastseg.use_backend(backend):
        near, far = (ours((1, 2, 3), mode)(y) for y in (x, far_apart(x, axis)))
        assert torch.equal(near, far)
        if axis < 3:  # of the gradient, which has three axes
            grad = torch.randn(2, 2, 2).half().to(device)
            _, indices = torch.ops.fastseg.pyramid_pool(x, [1, 2], mode == "max", False)
            form = indices, [1, 2], mode == "max", [2, 2], False
            results = [
                torch.ops.fastseg.pyramid_pool_backward(y, *form)
                for y in (grad, far_apart(grad[..., None], axis)[..., 0])
            ]
            assert torch.equal(*results)


@each_place(OP, without=NOT_COMPILED)  # those make several copies
@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 10 * 2**30, reason="needs 10 GB")
def test_inputs_past_2_to_31_elements(backend, device, monkeypatch):
    monkeypatch.setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    )  # it would take longer than the op
    _, *size = shape = 32, 8192, 8193
    x = torch.from_numpy(np.zeros((1, *shape), np.float16)).to(device)  # takes no memory until it is touched
    x[0, -1, -1, -1] = 65504
    with fastseg.use_backend(backend):
        value, indices = torch.ops.fastseg.pyramid_pool(x, [1, 1], False, False)
        assert value[0, -1] == value.sum() == (x[0, -1, -1, -1].float() / (8192 * 8193)).half()
        del x
        value[0, -1] = 65504
        grad = torch.ops.fastseg.pyramid_pool_backward(value, indices, [1, 1], False, size, False)
        assert (grad[0, -1, :: size[0] - 1, :: size[1] - 1] > 0).all() and not grad[0, :-1, ::128, 0].any()


@each_mode
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_threads_share_the_work(layout, mode):
    """Several tasks, whatever the number of cores: the same bits as one thread."""
    x, upstream = layouts(torch.randn(3, 70, 60, 60))[layout], torch.randn(3, 70, 50)
    one, *more = bits_by_threads(lambda: value_and_grad(ours(PSPNET, mode), x, upstream))
    for results in more:
        assert all(torch.equal(a, b) for a, b in zip(one, results, strict=True))


sides = st.integers(1, 9)


@settings(max_examples=80, deadline=None, derandomize=True)
@drawn(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 30), st.integers(1, 40)),
    bins=st.lists(st.one_of(sides, st.tuples(sides, sides)), min_size=1, max_size=5),
    mode=st.sampled_from(sorted(STOCK)),
    dtype=st.sampled_from(DTYPES),
)
def test_random_shapes(shape, bins, mode, dtype):
    compare((shape, bins), mode, None, "cpu", dtype)  # None: the backend that a user gets


@each_mode
def test_results(mode):
    """A list of (N, C, h, w), in the input's order of channels in memory; what is not asked for gets no gradient."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 5, 8, 9).contiguous(memory_format=layout).requires_grad_()
        whole, halves, grid = pyramid_pool(x, [1, 2, (3, 4)], mode)
        assert [y.shape[1:] for y in (whole, halves, grid)] == [(5, 1, 1), (5, 2, 2), (5, 3, 4)]
        assert (grid.stride(1) == 1) == (layout == torch.channels_last)
        assert torch.equal(grid, STOCK[mode](x, (3, 4)).contiguous()) or mode == "avg"
        (got,) = torch.autograd.grad(halves.sum(), x)
        (wanted,) = torch.autograd.grad(STOCK[mode](x, 2).sum(), x)
        torch.testing.assert_close(got, wanted)
    assert len(pyramid_pool(x)) == 4


@each_mode
def test_gradcheck(mode):
    """In float64, which runs the reference, through the public function; and the gradient's gradient."""
    x = torch.randperm(2 * 2 * 5 * 4).double().view(2, 2, 5, 4).requires_grad_()  # maxima that no step changes
    assert torch.autograd.gradcheck(ours((1, 2, (3, 6)), mode), x)
    assert torch.autograd.gradgradcheck(ours((1, 2, (3, 6)), mode), x)


@each_place(OP)
@each_mode
def test_gradient_of_the_gradient(mode, backend, device):
    """The gradient of <upstream, op(x)>'s gradient, by upstream, pools what comes in, or takes it at the maxima."""
    x, v = torch.randn(2, 1, 3, 5, 4).to(device)
    upstream = torch.randn(1, 3, 5, device=device, requires_grad=True)
    with fastseg.use_backend(backend):
        (grad,) = torch.autograd.grad(ours((1, 2), mode)(x.requires_grad_()), x, upstream, create_graph=True)
        (twice,) = torch.autograd.grad(grad, upstream, v)
        if mode == "avg":
            assert torch.equal(twice, ours((1, 2), "avg")(v))
        else:
            places = [F.adaptive_max_pool2d(x, b, return_indices=True)[1].flatten(2) for b in (1, 2)]
            assert torch.equal(twice, v.flatten(2).gather(2, torch.cat(places, 2)))


@each_place(OP)
@each_mode
@pytest.mark.parametrize("channels_last", (False, True))
def test_raw_ops_are_of_the_form_of_the_reference(channels_last, mode, backend, device):
    x = layouts(torch.randn(2, 5, 4, 3).half())["sliced"]
    bins, is_max = [2, 3, 1, 1], mode == "max"
    check_form(torch.ops.fastseg.pyramid_pool, (x, bins, is_max, channels_last), backend, device)
    _, indices = torch.ops.fastseg.pyramid_pool(x, bins, is_max, channels_last)
    arguments = torch.randn(2, 5, 7).half(), indices, bins, is_max, [4, 3], channels_last
    check_form(torch.ops.fastseg.pyramid_pool_backward, arguments, backend, device)


@each_place(OP, without=[INTERPRETER])
@each_mode
def test_gradients_come_in_any_layout(mode, backend, device):
    """As does the raw op's indices: both of a dense (N, C, S), a dense (N, S, C) and slices."""
    x, grad = torch.randn(2, 5, 9, 7, device=device), torch.randn(2, 5, 14, device=device)
    bins, op = [1, 1, 2, 2, 3, 3], torch.ops.fastseg.pyramid_pool_backward
    with fastseg.use_backend(backend):
        _, indices = torch.ops.fastseg.pyramid_pool(x, bins, mode == "max", False)
        form = bins, mode == "max", [9, 7]
        for channels_last in (False, True):
            wanted = op(grad, indices, *form, channels_last)
            for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):
                given, places = (
                    t.permute(order).contiguous().permute(order) if t.dim() == 3 else t for t in (grad, indices)
                )
                assert torch.equal(op(given, places, *form, channels_last), wanted)
            sliced = torch.full((3, 7, 30), float("nan"), device=device)[1:, 1:6, 1:29:2]
            assert torch.equal(op(sliced.copy_(grad), indices, *form, channels_last), wanted)
            one = grad[:1, :, :1].expand_as(grad)
            assert torch.equal(
                op(one, indices, *form, channels_last), op(one.contiguous(), indices, *form, channels_last)
            )


@each_mode
def test_opcheck(mode):
    for channels_last in (False, True):
        for x in (torch.randn(2, 5, 4, 6), layouts(torch.randn(2, 5, 4, 6))["sliced"]):
            form = [1, 1, 3, 2], mode == "max"
            torch.library.opcheck(torch.ops.fastseg.pyramid_pool.default, (x, *form, channels_last))
            output, indices = torch.ops.fastseg.pyramid_pool(x, *form, channels_last)
            backward = torch.ops.fastseg.pyramid_pool_backward.default
            torch.library.opcheck(backward, (output, indices, *form, [4, 6], channels_last))


@each_mode
def test_compile_forward_and_backward(mode):
    def f(x):
        return ours(PSPNET, mode)(x * 2).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape in ((2, 5, 7, 6), (3, 5, 9, 11)):  # a second shape makes the sizes symbolic
        x, upstream = torch.randn(shape), torch.randn(*shape[:2], 50)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            results = zip(value_and_grad(compiled, given, upstream), value_and_grad(f, given, upstream), strict=True)
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in results)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_export(mode, dtype):
    """As PyTorch's own ops, right at other sizes than the traced one."""

    class Pool(torch.nn.Module):
        def forward(self, x):
            return pyramid_pool(x, (1, 2, (3, 6), 7), mode)

    side = torch.export.Dim("side", min=1, max=4096)
    shapes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: side},)
    exported = torch.export.export(Pool(), (torch.randn(2, 5, 9, 12).to(dtype),), dynamic_shapes=shapes)
    assert not any("fastseg" in str(node.target) for node in exported.graph.nodes)
    for shape in ((2, 5, 9, 12), (1, 5, 33, 14), (3, 5, 1, 60), (4, 5, 2, 1)):
        x = torch.randn(shape).to(dtype)
        got = in_a_row(exported.module()(x))
        truth, own, single = (
            ours((1, 2, (3, 6), 7), mode)(x.to(wide)) for wide in (torch.float64, dtype, torch.float32)
        )
        assert_accurate("value", got, truth, own, single, roundings=8)


def test_autocast_func_grad_and_inference_mode():
    def f(x):
        return ours(PSPNET, "avg")(x).square().sum()

    x = torch.randn(1, 4, 9, 7)
    plain = value_and_grad(f, x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_and_grad(f, x)
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])
    assert torch.equal(torch.func.grad(f)(x), plain[1])
    with torch.inference_mode():
        inferred = ours(PSPNET, "avg")(x.requires_grad_())
    assert not inferred.requires_grad and torch.equal(inferred, ours(PSPNET, "avg")(x))


def test_what_gpu_kernels_refuse():
    """What they count in int32, or pass as arguments of a launch, has an end."""
    x = torch.empty(1, 1, 2**15, 2**15, device="meta")
    for why_not, given in ((_why_not_forward, (x,)), (_why_not_backward, (torch.empty(1, 1, 1), x))):
        how = (False, x.shape[2:], False) if len(given) == 2 else (False, False)
        assert "below 1073741824, got 10738" in why_not("triton", *given, [1, 2**15], *how)
        assert why_not("triton", *given, [1, 1], *how) is None
        assert why_not("native", *given, [1, 1] * 65, *how) is None  # on a CPU
    cuda = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"), shape=x.shape)
    assert "below 1073741824, got 1073741824" in _why_not_forward("native", cuda, [1, 1], False, False)
    cuda.shape = torch.Size((1, 1, 9, 9))
    assert "up to 64 bins, got 65" in _why_not_forward("native", cuda, [1, 1] * 65, False, False)
    assert _why_not_forward("native", cuda, [1, 1] * 64, False, False) is None
    assert "torch.float64" in _why_not_forward("native", x.double(), [1, 1], False, False)


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (([[1.0]],), TypeError, "input must be a floating-point tensor, got list"),
        ((torch.ones(1, 2, 3, 3, dtype=torch.int32),), TypeError, "got torch.int32"),
        ((torch.ones(2, 3, 3),), ValueError, r"\(N, C, H, W\).*got \(2, 3, 3\)"),
        ((torch.ones(1, 0, 3, 3),), ValueError, "C, H, W >= 1"),
        ((torch.ones(1, 2, 0, 3),), ValueError, "C, H, W >= 1"),
        ((torch.ones(1, 2, 3, 3), 3), ValueError, "bins must be a list of ints or pairs .* got 3"),
        ((torch.ones(1, 2, 3, 3), ()), ValueError, r"bins must be .* got \(\)"),
        ((torch.ones(1, 2, 3, 3), (2, 0)), ValueError, r"bins must be .* from 1 on, got \(2, 0\)"),
        ((torch.ones(1, 2, 3, 3), (2, (1, 2, 3))), ValueError, "bins must be"),
        ((torch.ones(1, 2, 3, 3), (2, 1.5)), ValueError, "bins must be"),
        ((torch.ones(1, 2, 3, 3), (2,), "mean"), ValueError, "mode must be one of avg, max, got 'mean'"),
    ],
)
def test_wrong_arguments(arguments, error, says):
    with pytest.raises(error, match=f"pyramid_pool: .*{says}"):
        pyramid_pool(*arguments)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each_mode
def test_function_transforms(mode):
    """vmap keeps the gradient. torch.compile knows no Function with a forward-mode derivative, so there is none: an
    error, not a tangent of zero."""
    f, x = ours((1, 2), mode), torch.randn(1, 3, 4, 5)
    with pytest.raises(RuntimeError, match="jvp|forward"):
        torch.func.jvp(f, (x,), (x,))
    many = torch.randn(3, 1, 2, 4, 5, requires_grad=True)
    mapped = torch.vmap(f)(many)
    assert torch.equal(mapped[1], f(many[1]))
    (got,), (wanted,) = (torch.autograd.grad(y.square().sum(), many) for y in (mapped, torch.stack([*map(f, many)])))
    torch.testing.assert_close(got, wanted)
