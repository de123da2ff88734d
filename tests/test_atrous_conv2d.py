"""atrous_conv2d and its gradients against F.conv2d in float64, on every backend."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from check import (
    NOT_COMPILED,
    check_form,
    check_tensors,
    each_place,
    far_apart,
    layouts,
    results,
    special,
)
from convolutions import convolutions
from hypothesis import given as drawn
from hypothesis import settings

import fastseg
from fastseg import dispatch
from fastseg.ops import atrous_conv2d

OP = "atrous_conv2d"
NAMES = ("input", "weight", "bias")
pytestmark = pytest.mark.usefixtures("one_thread", "exact_products")


@dataclass(frozen=True)
class Case:
    input: tuple  # (N, C, H, W)
    weight: tuple  # (O, C / groups, k, k)
    how: dict = field(default_factory=dict)
    biased: bool = False

    def stock(self, input, weight, bias=None):
        return F.conv2d(input, weight, bias, **self.how)

    def ours(self, input, weight, bias=None):
        return atrous_conv2d(input, weight, bias, **self.how)

    def tensors(self, dtype):
        """[input, weight], or with bias, and the gradient that comes in."""
        tensors = [torch.randn(self.input), torch.randn(self.weight)]
        tensors += [torch.randn(self.weight[0])] if self.biased else []
        upstream = torch.randn(self.stock(*(x.to("meta") for x in tensors)).shape)
        return [x.to(dtype) for x in tensors], upstream.to(dtype)


# Small enough for the interpreter, one reason each.
CASES = {
    "rate-3": Case((1, 8, 7, 7), (16, 8, 3, 3), {"padding": 3, "dilation": 3}, True),  # nine regions
    "rate-1": Case((1, 8, 5, 6), (8, 8, 3, 3), {"padding": 1}),  # one region, merged
    "over-the-edge": Case((2, 8, 4, 5), (8, 8, 3, 3), {"padding": 6, "dilation": 6}, True),  # the middle tap alone
    "no-tap": Case((1, 8, 2, 2), (8, 8, 1, 1), {"padding": 3}, True),  # outputs that see padding only: the bias
    "unpadded": Case((2, 8, 9, 8), (8, 8, 3, 3), {"dilation": 2}),  # its gradient sees padding
    "much-padding": Case((1, 8, 4, 4), (8, 8, 3, 3), {"padding": 4}, True),  # its gradient has negative padding
    "strided": Case((1, 8, 9, 8), (8, 8, 3, 3), {"stride": (2, 3), "padding": (4, 2), "dilation": (4, 2)}, True),
    "even-kernel": Case((1, 8, 6, 5), (8, 8, 2, 4), {"padding": (1, 2), "dilation": (2, 1)}),
    "k1": Case((3, 8, 5, 5), (40, 8, 1, 1), {}, True),  # more outputs than a multiple of 32
    "odd-channels": Case((2, 5, 4, 6), (7, 5, 3, 3), {"padding": 2, "dilation": 2}, True),
    "long-sums": Case((1, 70, 3, 3), (8, 70, 3, 3), {"padding": 1}),  # more channels than a block has
    "several-tiles": Case((3, 4, 9, 9), (8, 4, 3, 3), {"padding": 2, "dilation": 2}),  # which cross images
    "one-channel": Case((2, 1, 3, 3), (1, 1, 3, 3), {"padding": 1}),  # channels_last looks contiguous
    "groups": Case((1, 6, 5, 5), (4, 3, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}, True),  # PyTorch's
}


def compare(case, backend, device, dtype=torch.float32):
    if backend not in (None, "reference") and case.how.get("groups", 1) != 1:
        pytest.skip("no kernel for groups")
    if backend not in (None, "reference") and case.how.get("stride", 1) != 1:  # the gradient of the input is PyTorch's
        forward(case, backend, device, dtype)
    else:
        check_tensors(case.ours, case.stock, NAMES, *case.tensors(dtype), backend, device)


def forward(case, backend, device, dtype):
    """Without the gradient of the input."""
    (x, *others), upstream = case.tensors(dtype)

    def with_input(f):
        return lambda *others: f(x.to(others[0]), *others)

    check_tensors(with_input(case.ours), with_input(case.stock), NAMES[1:], others, upstream, backend, device)


@each_place(OP)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, backend, device):
    compare(CASES[case], backend, device)


@each_place(OP)
@pytest.mark.parametrize("case", ("rate-3", "odd-channels", "much-padding"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision(case, dtype, backend, device):
    compare(CASES[case], backend, device, dtype)


REAL = {
    "ASPP": Case((2, 96, 33, 33), (64, 96, 3, 3), {"padding": 12, "dilation": 12}),
    "ASPP, wide": Case((1, 64, 17, 65), (136, 64, 3, 3), {"padding": 36, "dilation": 36}, True),
    "layer4": Case((2, 64, 63, 97), (64, 64, 3, 3), {"padding": 4, "dilation": 4}),
    "long sums": Case((1, 2048, 9, 9), (32, 2048, 3, 3), {"padding": 6, "dilation": 6}),
}


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("case", REAL)
def test_real_shapes(case, dtype, backend, device):
    compare(REAL[case], backend, device, dtype)


FUSED = {
    "scale": ("scale",),
    "batch norm, relu": ("scale", "bias", "relu"),
    "all": ("scale", "bias", "residual", "relu"),
    "residual": ("residual",),
    "bias, relu": ("bias", "relu"),
}


@each_place(OP)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("fused", FUSED)
def test_what_is_fused(fused, layout, backend, device):
    """Against the same in float64; with and without a gradient."""
    x, weight, residual = torch.randn(2, 8, 5, 6), torch.randn(24, 8, 3, 3), torch.randn(2, 24, 5, 6)
    given = {"scale": torch.randn(24), "bias": torch.randn(24), "residual": residual, "relu": True}
    given = {name: value for name, value in given.items() if name in FUSED[fused]}

    def stock(x, weight, scale=None, bias=None, residual=None, relu=False):
        output = F.conv2d(x, weight, None, 1, 2, 2)
        output = output if scale is None else output * scale[:, None, None]
        output = output if bias is None else output + bias[:, None, None]
        output = output if residual is None else output + residual
        return output.relu() if relu else output

    def of(dtype, place):
        return {name: value.to(place, dtype) if name != "relu" else value for name, value in given.items()}

    truth = stock(x.double(), weight.double(), **of(torch.float64, "cpu"))
    usual = stock(x, weight, **given)
    with fastseg.use_backend(backend):
        laid = layouts(x.to(device))[layout]
        output = atrous_conv2d(laid, weight.to(device), padding=2, dilation=2, **of(torch.float32, device))
        with_gradient = atrous_conv2d(
            laid, weight.to(device).requires_grad_(), padding=2, dilation=2, **of(torch.float32, device)
        )
    assert with_gradient.requires_grad
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    allowed = 1.5 * (usual.double() - truth).abs().max() + 1e-7 * truth.abs().max()
    for result in (output, with_gradient.detach()):
        assert (result.cpu().double() - truth).abs().max() <= allowed
        assert result.is_contiguous(memory_format=memory_format)


@each_place(OP)
def test_nan_and_inf(backend, device):
    """They reach what their taps reach, forward and backward, and relu keeps a NaN. But beyond an edge PyTorch's
    gradient of the weight may multiply zeros by the input."""
    case = Case((1, 8, 6, 6), (8, 8, 3, 3), {"padding": 3, "dilation": 3})
    (x, weight), upstream = case.tensors(torch.float32)
    for k, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[0, k, 1, 2 * k] = x[0, k, 5, 5] = upstream[0, k, 0, 2 * k] = value
    wanted = results(case.stock, [x.double(), weight.double()], upstream)
    with fastseg.use_backend(backend):
        got = results(case.ours, [x.to(device), weight.to(device)], upstream.to(device))
        rectified = atrous_conv2d(x.to(device), weight.to(device), relu=True, **case.how)
    for y, truth in zip(got[:2], wanted[:2], strict=True):
        assert torch.equal(special(y.cpu()), special(truth))
    assert torch.equal(rectified.isnan().cpu(), wanted[0].isnan())


@each_place(OP)
def test_empty_batch_and_expanded_tensors(backend, device):
    case = Case((1, 8, 4, 4), (8, 8, 3, 3), {"padding": 2, "dilation": 2})
    (x, weight), upstream = case.tensors(torch.float32)
    x, weight, upstream = x.to(device), weight.to(device), upstream.to(device)
    with fastseg.use_backend(backend):
        output, of_input, of_weight = results(case.ours, [x[:0], weight], upstream[:0])
        assert output.shape == (0, 8, 4, 4) and of_input.shape == (0, 8, 4, 4) and not of_weight.any()
        many, one = x[:, :1, :, :1].expand_as(x), upstream[..., :1, :1].expand_as(upstream)
        same = results(case.ours, [many.contiguous(), weight], one.contiguous())
        got = results(case.ours, [many, weight], one)
    for a, b in zip(got, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, backend, device):
    case = Case((2, 2, 2, 2), (2, 2, 1, 1))
    tensors, upstream = case.tensors(torch.float16)
    near = [x.to(device) for x in (*tensors, upstream)]
    far = [far_apart(x, axis) if x.shape[axis] == 2 else x for x in near]
    with fastseg.use_backend(backend):
        a, b = (results(case.ours, given[:-1], given[-1]) for given in (near, far))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(how=convolutions())
def test_random_shapes(how):
    """Through the public function; in float64, in which PyTorch's own layouts agree."""
    batch, size, kernel, stride, padding, dilation = how
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    case = Case((min(batch, 2), 3, *size), (4, 3, *kernel), how, True)
    tensors, upstream = case.tensors(torch.float64)
    for a, b in zip(results(case.ours, tensors, upstream), results(case.stock, tensors, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_dispatch_goes_by_the_work_left(monkeypatch):
    """Where there is a kernel, a call that leaves little work takes it, and a dense one the reference."""
    monkeypatch.setattr(dispatch, "missing", dispatch.not_written)
    for rate, chosen in ((1, "reference"), (36, "triton")):
        x, weight = torch.empty(8, 64, 65, 65, dtype=torch.half), torch.empty(64, 64, 3, 3, dtype=torch.half)
        arguments = x, weight, None, None, None, (1, 1), (rate, rate), (rate, rate), 1, False, False
        backend, reasons = dispatch.choose(OP, "cuda", *arguments)
        assert backend == chosen
        assert chosen == "triton" or "of the dense work is left" in reasons["native"]
        of_input = arguments[0], weight, (1, 1), (rate, rate), (rate, rate), 1, (65, 65), False
        assert dispatch.choose("atrous_conv2d_backward_input", "cuda", *of_input)[0] == chosen
        of_weight = x, x, (1, 1), (rate, rate), (rate, rate), 1, (3, 3), False
        assert dispatch.choose("atrous_conv2d_backward_weight", "cuda", *of_weight)[0] == chosen
    with fastseg.use_backend("native"):
        assert dispatch.choose(OP, "cuda", *arguments[:6], (1, 1), (1, 1), *arguments[8:])[0] == "native"


def test_why_not():
    x, weight = torch.empty(1, 4, 9, 9), torch.empty(4, 4, 3, 3)

    def why(backend, x=x, stride=(1, 1), groups=1):
        return dispatch._ops[OP]["why_not"](
            backend, x, weight, None, None, None, stride, (1, 1), (1, 1), groups, False, False
        )

    assert why("native") is None and why("triton") is None
    assert "float64" in why("triton", x.double()) and "groups" in why("native", groups=2)
    torch.backends.cudnn.allow_tf32 = True
    assert "TF32" in why("native") and why("triton") is None and why("native", x.half()) is None
    backward = dispatch._ops["atrous_conv2d_backward_input"]["why_not"]
    assert "strided" in backward("native", x, weight, (2, 1), (1, 1), (1, 1), 1, (9, 9), False)


# What holds for an op of PyTorch.


def test_gradcheck():
    """In float64, which runs the reference, through the public function; and the gradients' gradients."""
    case = Case(
        (2, 4, 5, 6), (2, 2, 3, 2), {"stride": (2, 1), "padding": (3, 2), "dilation": (3, 2), "groups": 2}, True
    )
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64)[0]]
    assert torch.autograd.gradcheck(case.ours, tensors)
    assert torch.autograd.gradgradcheck(case.ours, tensors)
    scale, residual = torch.randn(2, dtype=torch.float64), torch.randn_like(case.stock(*tensors))
    fused = [*tensors, *(x.detach().requires_grad_() for x in (scale, residual))]
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, scale, residual: atrous_conv2d(
            x, weight, bias, **case.how, scale=scale, residual=residual, relu=True
        ),
        fused,
    )


@each_place(OP)
@pytest.mark.parametrize("channels_last", (False, True))
def test_raw_ops_are_of_the_form_of_the_reference(channels_last, backend, device):
    x, grad = layouts(torch.randn(2, 5, 4, 3).half())["sliced"], torch.randn(2, 6, 4, 3).half()
    weight, how = torch.randn(6, 5, 3, 3).half(), ([1, 1], [2, 2], [2, 2], 1)
    arguments = (x, weight, torch.randn(6).half(), None, grad, *how, True, channels_last)
    check_form(torch.ops.fastseg.atrous_conv2d, arguments, backend, device)
    backward_input = torch.ops.fastseg.atrous_conv2d_backward_input
    check_form(backward_input, (grad, weight, *how, [4, 3], channels_last), backend, device)
    backward_weight = torch.ops.fastseg.atrous_conv2d_backward_weight
    check_form(backward_weight, (grad, x, *how, [3, 3], channels_last), backend, device)


def test_opcheck():
    x, weight, bias, grad = torch.randn(2, 5, 4, 3), torch.randn(6, 5, 3, 3), torch.randn(6), torch.randn(2, 6, 4, 3)
    how = [1, 1], [2, 2], [2, 2], 1
    for channels_last in (False, True):
        op = torch.ops.fastseg.atrous_conv2d.default
        torch.library.opcheck(op, (x, weight, bias, bias, grad, *how, True, channels_last))
        backward_input = torch.ops.fastseg.atrous_conv2d_backward_input.default
        torch.library.opcheck(backward_input, (grad, weight, *how, [4, 3], channels_last))
        backward_weight = torch.ops.fastseg.atrous_conv2d_backward_weight.default
        torch.library.opcheck(backward_weight, (grad, x, *how, [3, 3], channels_last))


def test_compile_forward_and_backward():
    weight, bias = torch.randn(4, 5, 3, 3), torch.randn(4)

    def f(x, weight, bias):
        return atrous_conv2d(x * 2, weight, bias, padding=2, dilation=2).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for n, h in ((2, 4), (3, 6)):  # a second shape makes the sizes symbolic
        x, upstream = torch.randn(n, 5, h, 6), torch.randn(n, 4, h, 6)
        for layout in (torch.contiguous_format, torch.channels_last):
            given, coming = (t.contiguous(memory_format=layout) for t in (x, upstream))
            tensors = [given, weight, bias]
            of_both = zip(results(compiled, tensors, coming), results(f, tensors, coming), strict=True)
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in of_both)


def test_export():
    class Conv(torch.nn.Module):
        def forward(self, x, weight):
            return atrous_conv2d(x, weight, padding=2, dilation=2)

    x, more, batch = torch.randn(2, 5, 4, 6), torch.randn(5, 5, 4, 6), torch.export.Dim("batch", min=1, max=64)
    weight = torch.randn(4, 5, 3, 3)
    exported = torch.export.export(Conv(), (x, weight), dynamic_shapes=({0: batch}, {})).module()
    assert torch.equal(exported(more, weight), atrous_conv2d(more, weight, padding=2, dilation=2))


def test_autocast_inference_mode_and_no_batch():
    case = Case((1, 5, 6, 4), (4, 5, 3, 3), {"padding": 2, "dilation": 2}, True)
    tensors, upstream = case.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, *grads = results(case.ours, tensors, upstream)
        assert output.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads)
    plain = results(case.ours, [x.bfloat16() for x in tensors], upstream)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip((output, *grads), plain, strict=True))
    with torch.inference_mode():
        assert torch.equal(case.ours(*tensors), case.ours(*tensors))
    x, weight, bias = tensors
    single = atrous_conv2d(x[0], weight, bias, residual=case.stock(*tensors)[0], **case.how)
    torch.testing.assert_close(single, 2 * case.stock(*tensors)[0])


@pytest.mark.parametrize("padding", ("same", "valid"))
@pytest.mark.parametrize("kernel, dilation", (((3, 3), 2), ((2, 4), (3, 1)), ((4, 3), (2, 2))))
def test_padding_by_name(padding, kernel, dilation):
    x, weight = torch.randn(1, 3, 9, 10), torch.randn(4, 3, *kernel)
    how = {"padding": padding, "dilation": dilation}
    torch.testing.assert_close(atrous_conv2d(x, weight, **how), F.conv2d(x, weight, **how))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms():
    x, weight, how = torch.randn(3, 1, 2, 6, 5), torch.randn(3, 2, 3, 3), {"padding": 2, "dilation": 2}
    mapped = torch.vmap(lambda x: atrous_conv2d(x, weight, **how))(x)
    torch.testing.assert_close(mapped[1], F.conv2d(x[1], weight, **how))
    ours, theirs = (
        torch.func.grad(lambda w, f=f: f(x[0], w, **how).square().sum())(weight) for f in (atrous_conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


X, W = torch.ones(1, 4, 3, 3), torch.ones(4, 2, 3, 3)


@pytest.mark.parametrize(
    "arguments, keywords, error, says",
    [
        (([[1.0]], W), {}, TypeError, "input must be a floating-point tensor, got list"),
        ((X, W.int()), {}, TypeError, "weight must be a floating-point tensor, got torch.int32"),
        ((X, W, W), {}, ValueError, r"bias must have 1 axes, .*got \(4, 2, 3, 3\)"),
        ((X[0, 0], W), {}, ValueError, r"input must have 4 axes, .*got \(3, 3\)"),
        ((X[:, :, :0], W), {}, ValueError, "input must have 4 axes, none empty"),
        ((X, W.half()), {}, TypeError, "weight must be torch.float32 as input is, got torch.float16"),
        ((X, W.to("meta")), {}, ValueError, "weight must be on cpu as input is, got meta"),
        ((X, W), {}, ValueError, r"weight must be \(O, C / groups, k, k\) with input's C = 4.*got \(4, 2, 3, 3\)"),
        ((X, W[:3]), {"groups": 2}, ValueError, "groups, which divides O"),
        ((X, W), {"groups": 0}, ValueError, "groups=0"),
        ((X, W), {"groups": 2, "stride": 0}, ValueError, "stride must be an int or two, from 1 on, got 0"),
        ((X, W), {"groups": 2, "padding": -1}, ValueError, "padding must be an int or two, from 0 on, got -1"),
        ((X, W), {"groups": 2, "dilation": 1.5}, ValueError, "dilation must be an int or two, from 1 on, got 1.5"),
        ((X, W), {"groups": 2, "dilation": 2}, ValueError, "output of at least 1 x 1 of an input of 3 x 3"),
        ((X, W), {"groups": 2, "padding": "full"}, ValueError, 'padding must be .*"same", got .full. with stride'),
        ((X, W), {"groups": 2, "padding": "same", "stride": 2}, ValueError, r"with stride \(2, 2\)"),
        ((X, W, X[0, 0, 0]), {"groups": 2}, ValueError, r"bias must be \(4,\), got \(3,\)"),
        ((X, W), {"groups": 2, "residual": X}, ValueError, r"residual must be \(1, 4, 1, 1\), got \(1, 4, 3, 3\)"),
        ((X, W), {"groups": 2, "scale": X[0, 0, 0]}, ValueError, r"scale must be \(4,\), got \(3,\)"),
    ],
)
def test_wrong_arguments(arguments, keywords, error, says):
    with pytest.raises(error, match=f"atrous_conv2d: .*{says}"):
        atrous_conv2d(*arguments, **keywords)
