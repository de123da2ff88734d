"""deconv2d and its gradients against F.conv_transpose2d in float64, on every backend."""

import os
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from check import (
    COMING,
    INTERPRETER,
    NOT_COMPILED,
    assert_accurate,
    bits_by_threads,
    check_form,
    each_place,
    far_apart,
    layouts,
    results,
    special,
)
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import fastseg
from fastseg import dispatch
from fastseg.ops import deconv2d
from fastseg.ops.deconv2d_diagonal import is_diagonal, is_known_as_diagonal

OP = "deconv2d"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("input", "weight", "bias", "skip")
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    input: tuple  # (N, C, h, w)
    weight: tuple  # (C, O / groups, k, k)
    how: dict = field(default_factory=dict)
    crop: tuple | None = None
    added: bool = False  # bias and skip

    def stock(self, input, weight, bias=None, skip=None):
        output = F.conv_transpose2d(input, weight, bias, **self.how)
        if self.crop:
            top, left, height, width = self.crop
            output = output[:, :, top : top + height, left : left + width]
        return output if skip is None else output + skip

    def ours(self, input, weight, bias=None, skip=None):
        return deconv2d(input, weight, bias, **self.how, crop=self.crop, skip=skip)

    def tensors(self, dtype):
        """[input, weight], or with bias and skip, and the gradient that comes in."""
        tensors = [torch.randn(self.input), torch.randn(self.weight)]
        shape = self.stock(*(x.to("meta") for x in tensors)).shape
        if self.added:
            tensors += [torch.randn(shape[1]), torch.randn(shape)]
        return [x.to(dtype) for x in tensors], torch.randn(shape).to(dtype)


# Small enough for the interpreter, one reason each.
CASES = {
    "x2": Case((2, 5, 3, 4), (5, 7, 4, 4), {"stride": 2}),  # FCN's doubling: each phase sees 2 x 2 inputs
    "x2, cropped, skip": Case((1, 5, 4, 3), (5, 5, 4, 4), {"stride": 2}, (1, 2, 7, 5), True),
    "k16 s8": Case((1, 3, 2, 3), (3, 5, 16, 16), {"stride": 8}, (3, 4, 18, 22)),
    "k15 s8": Case((1, 2, 2, 1), (2, 3, 15, 15), {"stride": 8}, (4, 3, 17, 9)),  # the last phase has fewer taps
    "k3 s2, padded": Case((2, 4, 4, 5), (4, 6, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}, None, True),
    "k3 s1": Case((1, 4, 5, 4), (4, 5, 3, 3), {"padding": 1}),  # a convolution with the kernel turned round
    "k2 s3": Case((1, 3, 3, 4), (3, 4, 2, 2), {"stride": 3}, None, True),  # gaps between the outputs of inputs
    "dilated": Case((1, 3, 4, 5), (3, 4, 3, 3), {"stride": 2, "dilation": 3}),  # phases in another order than taps
    "common divisor": Case((1, 3, 3, 4), (3, 4, 5, 3), {"stride": (6, 4), "dilation": (4, 2)}),  # phases without taps
    "one axis": Case((1, 4, 1, 9), (4, 3, 1, 6), {"stride": (1, 3), "padding": (0, 2)}),
    "groups": Case((2, 6, 3, 4), (6, 4, 4, 4), {"stride": 2, "groups": 2}, None, True),
    "a group per channel": Case((2, 9, 3, 4), (9, 1, 4, 4), {"stride": 2, "groups": 9}, (1, 1, 6, 7), True),
    "depthwise, dilated": Case((1, 17, 3, 4), (17, 1, 3, 3), {"stride": 2, "dilation": 3, "groups": 17}),
    "depthwise, s3 d2": Case((1, 5, 3, 4), (5, 1, 4, 4), {"stride": 3, "dilation": 2, "groups": 5}),  # 2 inverts 2
    "depthwise, many taps": Case((1, 3, 2, 3), (3, 1, 2, 70), {"stride": (2, 16), "groups": 3}),  # several blocks
    "many phases": Case((2, 2, 3, 4), (2, 3, 2, 41), {"stride": (2, 40)}),  # several blocks
    "two outputs per channel": Case((1, 3, 3, 4), (3, 2, 4, 4), {"stride": 2, "groups": 3}),
    "k1 s1": Case((2, 20, 1, 1), (20, 3, 1, 1), {}, None, True),
    "one channel": Case((2, 1, 3, 3), (1, 1, 4, 4), {"stride": 2}),  # channels_last looks contiguous
    "33 to 40 channels": Case((1, 33, 2, 3), (33, 40, 4, 4), {"stride": 2}),  # one more than a block or vector
    "one stride wide": Case((1, 3, 3, 3), (3, 4, 4, 4), {"stride": 2}, (4, 3, 1, 2), True),  # a channel ends as a run
    "outside": Case((1, 3, 3, 3), (3, 4, 4, 4), {"stride": 4, "padding": 1, "output_padding": 3}),  # no tap reaches
}


def compare(case, backend, device, dtype=torch.float32):
    """Output and all gradients, with the tensors in every layout (one in the interpreter)."""
    tensors, upstream = case.tensors(dtype)
    known = [
        results(case.stock, [x.to(wide) for x in tensors], upstream) for wide in (torch.float64, dtype, torch.float32)
    ]
    interpreted = (backend, device) == INTERPRETER
    turned = {"contiguous": "sliced", "channels_last": "transposed", "sliced": "contiguous", "transposed": "sliced"}
    chosen = ["channels_last" if case.input[1] % 2 else "sliced"] if interpreted else turned
    for name in chosen:
        wanted = {"input": name, "weight": turned[name], "skip": COMING[name]}
        given = [
            layouts(x)[wanted[what]] if what in wanted else x
            for what, x in zip(NAMES, (x.to(device) for x in tensors), strict=False)
        ]
        coming = layouts(upstream.to(device))[COMING[name]]
        before = [x.clone() for x in (*given, coming)]
        with fastseg.use_backend(backend):
            got = results(case.ours, given, coming)
        assert all(torch.equal(x, y) for x, y in zip((*given, coming), before, strict=True)), "an input was written to"
        for what, y, truth, usual, single in zip(("output", *NAMES), got, *known, strict=False):
            what = f"{backend} on {device}, {name}: {what}"
            assert y.dtype == dtype
            assert_accurate(what, y, truth, usual, single, roundings=4)
        channels_last = name == "channels_last" and not given[0].is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert all(y.is_contiguous(memory_format=memory_format) for y in got[:2]), "not in the memory format of input"
    if not interpreted:  # which runs one program after another: always the same
        with fastseg.use_backend(backend):
            again = results(case.ours, given, coming)
        assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True)), "two runs differ"


@each_place(OP)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, backend, device):
    compare(CASES[case], backend, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_composed_gradient_of_the_input(case, dtype):
    with dispatch.prefer_backend("composed"):
        compare(CASES[case], None, "cpu", dtype)


@pytest.mark.parametrize(
    "channels, kernel, layout, backend",
    [
        (64, 4, torch.channels_last, "composed"),
        (64, 4, torch.contiguous_format, "native"),
        (63, 4, torch.channels_last, "native"),
        (64, 5, torch.channels_last, "native"),
    ],
)
def test_many_channels_take_the_gradient_that_is_faster(channels, kernel, layout, backend):
    weight = torch.randn(70, channels, kernel, kernel)
    x = torch.randn(1, 70, 3, 3).contiguous(memory_format=layout).requires_grad_()
    y = deconv2d(x, weight, stride=2)
    how = [2, 2], [1, 1], 1, [0, 0, *y.shape[2:]], [3, 3], layout == torch.channels_last
    chosen, reasons = dispatch.choose("deconv2d_backward_input", "cpu", y.detach(), weight, *how)
    if "native" in fastseg.backends("deconv2d_backward_input", "cpu"):
        assert chosen == backend and ("oneDNN is faster" in (reasons["native"] or "")) is (backend == "composed")


@each_place(OP)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ("x2, cropped, skip", "k16 s8", "a group per channel"))
def test_half_precision(case, dtype, backend, device):
    compare(CASES[case], backend, device, dtype)


REAL = {
    "FCN-32s of AlexNet": Case((1, 5, 3, 2), (5, 5, 63, 63), {"stride": 32}, (18, 18, 70, 33)),
    "FCN-16s": Case((1, 21, 9, 9), (21, 21, 32, 32), {"stride": 16}, (27, 27, 100, 97), True),
    "FCN-32s, depthwise": Case((1, 21, 4, 5), (21, 1, 64, 64), {"stride": 32, "groups": 21}, (19, 19, 97, 63)),
    "decoder": Case((2, 96, 13, 12), (96, 64, 2, 2), {"stride": 2}, None, True),  # U-Net's
    "generator": Case((2, 64, 8, 9), (64, 48, 4, 4), {"stride": 2, "padding": 1}),  # DCGAN's
    "long sums": Case((1, 600, 5, 5), (600, 20, 3, 3), {"stride": 2, "padding": 1}),
}


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize("case, dtype", [(name, torch.float32) for name in REAL] + [("generator", torch.bfloat16)])
def test_real_shapes(case, dtype, backend, device):
    compare(REAL[case], backend, device, dtype)


@each_place(OP)
@pytest.mark.parametrize("padding", (0, 1))
@pytest.mark.parametrize("depthwise", (False, True))
def test_nan_and_inf(depthwise, padding, backend, device):
    """They reach what their taps reach, forward and backward, and nothing through a tap that is not there. But beyond
    an edge PyTorch's gradient of the weight multiplies zeros by the input, and kernels may multiply the weight."""
    how = {"stride": 2, "padding": padding, "groups": 3 if depthwise else 1}
    case = Case((1, 3, 5, 6), (3, 1 if depthwise else 3, 3, 3), how)
    (x, weight), upstream = case.tensors(torch.float32)
    for k, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[0, k, 1, 2 * k] = x[0, k, 4, 5] = upstream[0, k, 0, 3 * k] = upstream[0, k, -1, -1] = value
    wanted = results(case.stock, [x.double(), weight.double()], upstream)
    with fastseg.use_backend(backend):
        got = results(case.ours, [x.to(device), weight.to(device)], upstream.to(device))
        for y, truth in list(zip(got, wanted, strict=True))[: 2 if padding else 3]:
            assert torch.equal(special(y.cpu()), special(truth))
        weight[:, 0, 2, 2] = float("nan")
        output = case.ours(x.to(device), weight.to(device)).cpu()
    reached = case.stock(x.double(), weight.double()).isnan()
    assert output.isnan()[reached].all() and (padding == 0 or torch.equal(output.isnan(), reached))


@each_place(OP)
def test_empty_batch_and_expanded_tensors(backend, device):
    case = Case((1, 4, 3, 3), (4, 4, 4, 4), {"stride": 2})
    tensors, upstream = case.tensors(torch.float32)
    x, weight, upstream = (t.to(device) for t in (*tensors, upstream))
    with fastseg.use_backend(backend):
        output, of_input, of_weight = results(case.ours, [x[:0], weight], upstream[:0])
        assert output.shape == (0, 4, 8, 8) and of_input.shape == (0, 4, 3, 3) and not of_weight.any()
        many, one = x[:, :1, :, :1].expand_as(x), upstream[..., :1, :1].expand_as(upstream)
        same = results(case.ours, [many.contiguous(), weight], one.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(results(case.ours, [many, weight], one), same, strict=True))


@each_place(OP)
def test_big_magnitudes(backend, device):
    """Small products of what is large and what is small; and those beyond float16, which are inf in it."""
    case = CASES["x2"]
    (x, weight), _ = case.tensors(torch.float32)
    truth = case.stock(x.double() * 1e30, weight.double() * 1e-30)
    with fastseg.use_backend(backend):
        got = case.ours((x * 1e30).to(device), (weight * 1e-30).to(device)).cpu().double()
        assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()
        beyond = case.ours((x * 300).half().to(device), (weight * 300).half().to(device)).cpu()
    wide = case.stock((x * 300).half().double(), (weight * 300).half().double())
    certain = (wide.abs() - 65520).abs() > 100
    assert torch.equal(beyond.isinf()[certain], (wide.abs() > 65520)[certain])
    assert beyond.isinf().any() and not beyond.isnan().any()


@each_place(OP, without=[INTERPRETER])  # which copies whole storages
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, backend, device):
    case = Case((2, 2, 2, 2), (2, 2, 1, 1), {}, None, True)
    tensors, upstream = case.tensors(torch.float16)
    near = [x.to(device) for x in (*tensors, upstream)]
    far = [far_apart(x, axis) if x.dim() == 4 and x.shape[axis] == 2 else x for x in near]
    with fastseg.use_backend(backend):
        a, b = (results(case.ours, given[:-1], given[-1]) for given in (near, far))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each_place(OP, without=NOT_COMPILED)  # those make several copies
@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 10 * 2**30, reason="needs 10 GB")
def test_results_past_2_to_31_elements(backend, device, monkeypatch):
    monkeypatch.setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    )  # it would take longer than the op
    x = torch.zeros(1, 1, 8192, 8193, dtype=torch.float16, device=device)
    x[0, 0, ::8191, ::8192] = torch.tensor([[1, 2], [3, 4]])
    weight = torch.ones(1, 2, 4, 4, dtype=torch.float16, device=device)
    with fastseg.use_backend(backend):
        output = deconv2d(x, weight, stride=4)
    assert output.numel() > 2**31
    assert output[0, 1, :: output.shape[2] - 1, :: output.shape[3] - 1].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("groups", (1, 12))
def test_threads_share_the_work(groups, layout):
    """Several tasks, whatever the number of cores: the same bits as one thread."""
    case = Case((2, 12, 20, 24), (12, 12 // groups, 8, 8), {"stride": 4, "groups": groups}, None, True)
    tensors, upstream = case.tensors(torch.float32)
    given = [layouts(x)[layout] if x.dim() == 4 else x for x in tensors]
    one, *more = bits_by_threads(lambda: results(case.ours, given, upstream))
    for got in more:
        assert all(torch.equal(a, b) for a, b in zip(one, got, strict=True))


@st.composite
def cases(draw):
    def pair(least, most):
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    groups, c, o = draw(
        st.sampled_from([(1, 1, 1), (1, 5, 3), (1, 24, 21), (2, 3, 9), (7, 1, 1), (18, 1, 1), (3, 1, 4)])
    )
    size, kernel, stride, dilation, padding = pair(1, 6), pair(1, 9), pair(1, 5), pair(1, 3), pair(0, 3)
    most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    extra = tuple(draw(st.integers(0, m)) for m in most)
    full = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * p + e
        for n, s, d, k, p, e in zip(size, stride, dilation, kernel, padding, extra, strict=True)
    ]
    if min(full) < 1:
        padding, extra = (0, 0), (0, 0)
        full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    crop = None
    if draw(st.booleans()):
        first = [draw(st.integers(0, n - 1)) for n in full]
        crop = (*first, *(draw(st.integers(1, n - a)) for n, a in zip(full, first, strict=True)))
    how = {"stride": stride, "dilation": dilation, "padding": padding, "output_padding": extra, "groups": groups}
    shape = (draw(st.integers(1, 2)), groups * c, *size)
    return Case(shape, (groups * c, o, *kernel), how, crop, draw(st.booleans()))


@settings(max_examples=100, deadline=None, derandomize=True)
@drawn(case=cases(), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case, dtype):
    compare(case, None, "cpu", dtype)  # None: the backend that a user gets


@pytest.fixture
def called(monkeypatch):
    """[(op, groups) ...] of what dispatch lets backends run."""
    calls, function = [], dispatch._function

    def recorded(name, backend):
        def call(*args):
            calls.append((name, args[6 if name == OP else 4]))
            return function(name, backend)(*args)

        return call

    monkeypatch.setattr(dispatch, "_function", recorded)
    return calls


def diagonal_weight(channels, size):
    weight = torch.zeros(channels, channels, size, size)
    weight.diagonal().copy_(torch.randn(size, size, channels))
    return weight


@each_place(OP)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_a_diagonal_weight_runs_depthwise(layout, backend, device, called):
    """The gradient by the weight is that of all its elements."""
    case = Case((1, 5, 3, 4), (5, 5, 4, 4), {"stride": 2}, (1, 1, 6, 7), True)
    (x, _, bias, skip), upstream = case.tensors(torch.float32)
    tensors = [x, layouts(diagonal_weight(5, 4))[layout], bias, skip]
    truth, usual = results(case.stock, [t.double() for t in tensors], upstream), results(case.stock, tensors, upstream)
    tensors = [t.to(device) for t in tensors]
    with fastseg.use_backend(backend):
        got = results(case.ours, tensors, upstream.to(device))
    groups = 1 if device == "cuda" else 5  # a GPU does not trust a weight that requires a gradient
    assert called == [(OP, groups), ("deconv2d_backward_input", groups), ("deconv2d_backward_weight", 1)]
    for what, y, *known in zip(("output", *NAMES), got, truth, usual, usual, strict=True):
        assert_accurate(what, y, *known, roundings=4)
    with fastseg.use_backend(backend):
        frozen = [case.ours(*tensors) for _ in range(3)]
    assert called[-1] == (OP, 5)
    for output in frozen:
        assert_accurate("frozen", output, truth[0], usual[0], usual[0], roundings=4)


def by_optimiser(weight):
    weight.requires_grad_().grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()
    weight.requires_grad_(False)


# What changes a weight (5, 5, 4, 4) so that it is not diagonal any more; a version of it ends with the first three.
CHANGES = {
    "in place": lambda weight: weight[0, 1, 2, 3].fill_(0.5),
    "load_state_dict": lambda weight: torch.nn.ParameterList([weight]).load_state_dict({"0": torch.randn(5, 5, 4, 4)}),
    "data = ...": lambda weight: setattr(weight, "data", torch.randn(5, 5, 4, 4)),
    "an optimiser": by_optimiser,
    "through data": lambda weight: weight.data.fill_(0.5),
    "numpy": lambda weight: weight.numpy().fill(0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weight_is_noticed(change, called):
    x, weight = torch.randn(1, 5, 3, 4), torch.nn.Parameter(diagonal_weight(5, 4), requires_grad=False)
    for _ in range(2):
        deconv2d(x, weight, stride=2)
    assert called == [(OP, 5)] * 2
    CHANGES[change](weight)
    torch.testing.assert_close(deconv2d(x, weight, stride=2), F.conv_transpose2d(x, weight, stride=2))
    assert called[-1] == (OP, 1)
    weight.copy_(diagonal_weight(5, 4))
    torch.testing.assert_close(deconv2d(x, weight, stride=2), F.conv_transpose2d(x, weight, stride=2))
    assert called[-1] == (OP, 5)


def test_what_is_not_diagonal():
    weight = diagonal_weight(5, 4)
    assert is_diagonal(weight, 1)
    assert not is_diagonal(weight[:, :1], 5) and not is_diagonal(weight[:4], 1) and not is_diagonal(weight[:1, :1], 1)
    weight[4, 3, 3, 3] = float("nan")
    assert not is_diagonal(weight, 1)


@pytest.mark.parametrize("change", list(CHANGES)[:3])
def test_a_version_is_looked_at_once(change, monkeypatch):
    """What GPUs go by: not at the first use, nor while it requires a gradient."""
    looks, count = [], torch.Tensor.count_nonzero
    monkeypatch.setattr(torch.Tensor, "count_nonzero", lambda x: looks.append(1) or count(x))
    weight = torch.nn.Parameter(diagonal_weight(5, 4), requires_grad=False)
    assert [is_known_as_diagonal(weight) for _ in range(4)] == [False, True, True, True]
    assert len(looks) == 2  # in one look
    CHANGES[change](weight)
    assert [is_known_as_diagonal(weight) for _ in range(3)] == [False] * 3
    weight.copy_(diagonal_weight(5, 4))
    assert [is_known_as_diagonal(weight) for _ in range(3)] == [False, True, True]
    weight.requires_grad_()
    assert not is_known_as_diagonal(weight)
    assert not is_known_as_diagonal(weight.requires_grad_(False))
    with torch.inference_mode():  # such tensors have no version
        made = diagonal_weight(5, 4)
        assert [is_known_as_diagonal(made) for _ in range(3)] == [False] * 3


def test_gradcheck():
    """In float64, which runs the reference, through the public function; and the gradients' gradients."""
    case = Case((2, 4, 2, 3), (4, 2, 3, 4), {"stride": (2, 3), "padding": 1, "groups": 2}, (1, 0, 2, 6), True)
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64)[0]]
    assert torch.autograd.gradcheck(case.ours, tensors)
    assert torch.autograd.gradgradcheck(case.ours, tensors)


@each_place(OP)
@pytest.mark.parametrize("only", (None, 0, 1))
def test_gradients_of_the_gradients(only, backend, device):
    """Of all inputs, or of one: what the other's gradient does not need is not kept."""
    case = Case((1, 3, 3, 2), (3, 2, 4, 4), {"stride": 2})
    tensors, upstream = case.tensors(torch.float32)
    direction = [torch.randn_like(x) for x in tensors]

    def twice(f, device="cpu", dtype=torch.float32):
        x, w = (t.to(device, dtype) for t in tensors)
        leaves = [t.requires_grad_() for k, t in enumerate((x, w)) if only in (None, k)]
        leaves.append(upstream.to(device, dtype, copy=True).requires_grad_())
        grads = torch.autograd.grad(f(x, w), leaves[:-1], leaves[-1], create_graph=True)
        along = sum((g * d.to(device, dtype)).sum() for g, d in zip(grads, direction[(only or 0) :], strict=False))
        return torch.autograd.grad(along, leaves, allow_unused=True)

    with fastseg.use_backend(backend):
        got = twice(case.ours, device)
    wanted, usual = twice(case.stock, dtype=torch.float64), twice(case.stock)
    assert [y is None for y in got] == [y is None for y in wanted]
    for y, truth, single in zip(got, wanted, usual, strict=True):
        if y is not None:
            assert_accurate("second gradient", y, truth, single, single, roundings=4)


@each_place(OP)
@pytest.mark.parametrize("channels_last", (False, True))
def test_raw_ops_are_of_the_form_of_the_reference(channels_last, backend, device):
    x, grad = (layouts(torch.randn(2, 5, *size).half())["sliced"] for size in ((4, 3), (7, 9)))
    weight, how = torch.randn(5, 5, 4, 4).half(), ([2, 2], [1, 1], 1, [1, 0, 7, 9])
    check_form(torch.ops.fastseg.deconv2d, (x, weight, None, grad, *how, channels_last), backend, device)
    backward_input = torch.ops.fastseg.deconv2d_backward_input
    check_form(backward_input, (grad, weight, *how, [4, 3], channels_last), backend, device)
    check_form(torch.ops.fastseg.deconv2d_backward_weight, (grad, x, *how, [4, 4]), backend, device)


def test_opcheck():
    x, weight, bias, skip = torch.randn(2, 5, 4, 3), torch.randn(5, 4, 4, 4), torch.randn(4), torch.randn(2, 4, 7, 8)
    how = [2, 2], [1, 1], 1, [1, 0, 7, 8]
    for channels_last in (False, True):
        torch.library.opcheck(torch.ops.fastseg.deconv2d.default, (x, weight, bias, skip, *how, channels_last))
        backward_input = torch.ops.fastseg.deconv2d_backward_input.default
        torch.library.opcheck(backward_input, (skip, weight, *how, [4, 3], channels_last))
    torch.library.opcheck(torch.ops.fastseg.deconv2d_backward_weight.default, (skip, x, *how, [4, 4]))


def test_compile_forward_and_backward():
    weight, bias = torch.randn(5, 4, 4, 4), torch.randn(4)

    def f(x, weight, bias, skip):
        return deconv2d(x * 2, weight, bias, 2, crop=(1, 1, 2 * x.shape[2], 7), skip=skip).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for n, h in ((2, 4), (3, 6)):  # a second shape makes the sizes symbolic
        x, skip, upstream = torch.randn(n, 5, h, 6), torch.randn(n, 4, 2 * h, 7), torch.randn(n, 4, 2 * h, 7)
        for layout in (torch.contiguous_format, torch.channels_last):
            given, coming = (t.contiguous(memory_format=layout) for t in (x, upstream))
            tensors = [given, weight, bias, skip]
            pairs = zip(results(compiled, tensors, coming), results(f, tensors, coming), strict=True)
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_export():
    class Deconv(torch.nn.Module):
        def forward(self, x, weight):
            return deconv2d(x, weight, stride=2)

    x, more, batch = torch.randn(2, 5, 4, 6), torch.randn(5, 5, 4, 6), torch.export.Dim("batch", min=1, max=64)
    weight = torch.randn(5, 4, 4, 4)
    exported = torch.export.export(Deconv(), (x, weight), dynamic_shapes=({0: batch}, {})).module()
    assert torch.equal(exported(more, weight), deconv2d(more, weight, stride=2))


def test_autocast_inference_mode_and_no_batch():
    case = Case((1, 5, 3, 4), (5, 4, 4, 4), {"stride": 2}, None, True)
    tensors, upstream = case.tensors(torch.float32)
    low = [x.bfloat16() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        output, *grads = results(case.ours, tensors, upstream)
        assert case.stock(*tensors[:3]).dtype == output.dtype == torch.bfloat16
        mixed = case.ours(low[0], *tensors[1:])
    assert all(grad.dtype == torch.float32 for grad in grads)
    plain = results(case.ours, low, upstream)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip((output, *grads), plain, strict=True))
    assert torch.equal(mixed, plain[0])
    with torch.inference_mode():
        assert torch.equal(case.ours(*tensors), case.ours(*tensors))
    x = tensors[0].clone().requires_grad_()
    output = case.ours(x, *tensors[1:])
    with torch.autocast("cpu", torch.bfloat16), fastseg.use_backend("reference"):  # of a float32 call
        (grad,) = torch.autograd.grad(output, x, upstream)
    torch.testing.assert_close(grad, results(case.ours, tensors, upstream)[1])
    x, weight, bias, skip = tensors
    assert torch.equal(deconv2d(x[0], weight, bias, 2, skip=skip[0]), case.ours(*tensors)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms():
    x, weight = torch.randn(3, 1, 2, 4, 5), torch.randn(2, 3, 4, 4)
    mapped = torch.vmap(lambda x: deconv2d(x, weight, stride=2))(x)
    torch.testing.assert_close(mapped[1], F.conv_transpose2d(x[1], weight, stride=2))
    ours, theirs = (
        torch.func.grad(lambda w, f=f: f(x[0], w, stride=2).square().sum())(weight)
        for f in (deconv2d, F.conv_transpose2d)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="jvp|forward"):  # an error, not a tangent of zero
        torch.func.jvp(lambda x: deconv2d(x, weight, stride=2), (x[0],), (x[0],))


X, W = torch.ones(1, 4, 3, 3), torch.ones(4, 2, 4, 4)


@pytest.mark.parametrize(
    "arguments, keywords, error, says",
    [
        (([[1.0]], W), {}, TypeError, "input must be a floating-point tensor, got list"),
        ((X, W.int()), {}, TypeError, "weight must be a floating-point tensor, got torch.int32"),
        ((X, W, W), {}, ValueError, r"bias must have 1 axes, .*got \(4, 2, 4, 4\)"),
        ((X[0, 0], W), {}, ValueError, r"input must have 4 axes, .*got \(3, 3\)"),
        ((X[:, :, :0], W), {}, ValueError, "input must have 4 axes, none empty"),
        ((X, W[:, :0]), {}, ValueError, "weight must have 4 axes, none empty"),
        ((X[0], W), {"skip": 3.0}, TypeError, "skip must be a floating-point tensor, got float"),
        ((X, W.half()), {}, TypeError, "weight must be torch.float32 as input is, got torch.float16"),
        ((X, W.to("meta")), {}, ValueError, "weight must be on cpu as input is, got meta"),
        ((X, W[:3]), {}, ValueError, r"weight must be \(C, O / groups, k, k\) with input's C = 4.*got \(3, 2, 4, 4\)"),
        ((X, W), {"groups": 3}, ValueError, "divisible by groups, got .* groups=3"),
        ((X, W), {"groups": 0}, ValueError, "groups=0"),
        ((X, W), {"stride": 0}, ValueError, "stride must be an int or two, from 1 on, got 0"),
        ((X, W), {"stride": (1, 2, 3)}, ValueError, "stride must be an int or two"),
        ((X, W), {"padding": -1}, ValueError, "padding must be an int or two, from 0 on, got -1"),
        ((X, W), {"dilation": 1.5}, ValueError, "dilation must be an int or two, from 1 on, got 1.5"),
        ((X, W), {"stride": 2, "output_padding": 2}, ValueError, "output_padding must be below stride or dilation"),
        ((X, W), {"padding": 3}, ValueError, "output of at least 1 x 1, here 0 x 0"),
        ((X, W), {"crop": (1, 1, 6, 5)}, ValueError, r"crop must be .* here 6 x 6, got \(1, 1, 6, 5\)"),
        ((X, W), {"crop": (-1, 1, 2, 2)}, ValueError, "crop must be"),
        ((X, W), {"crop": (1, 1, 2)}, ValueError, "crop must be"),
        ((X, W), {"crop": 5}, ValueError, r"crop must be \(top, left, height, width\), .* got 5"),
        ((X, W, X[0, 0, 0]), {}, ValueError, r"bias must be \(2,\), got \(3,\)"),
        ((X, W), {"skip": X}, ValueError, r"skip must be \(1, 2, 6, 6\), got \(1, 4, 3, 3\)"),
    ],
)
def test_wrong_arguments(arguments, keywords, error, says):
    with pytest.raises(error, match=f"deconv2d: .*{says}"):
        deconv2d(*arguments, **keywords)
