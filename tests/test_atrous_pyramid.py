"""atrous_pyramid and its gradients against its branches by F.conv2d in float64, on every backend."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from check import (
    IN_INTERPRETER,
    INTERPRETER,
    check_form,
    check_tensors,
    each_place,
    largest_error,
    layouts,
    relative_error,
    results,
)

import fastseg
from fastseg import dispatch
from fastseg.ops import atrous_conv2d, atrous_pyramid
from fastseg.ops.atrous_conv2d_plan import branches
from fastseg.ops.atrous_conv2d_tiles import TILE_FIELDS, tile_table

OP = "atrous_pyramid"
pytestmark = pytest.mark.usefixtures("one_thread", "exact_products")


@dataclass(frozen=True)
class Case:
    input: tuple  # (N, C, H, W)
    branches: tuple  # (outputs, kernel, rate)

    def stock(self, input, *weights):
        maps = [
            F.conv2d(input, weight, padding=rate * (k // 2), dilation=rate)
            for weight, (_, k, rate) in zip(weights, self.branches, strict=True)
        ]
        return torch.cat(maps, 1)

    def ours(self, input, *weights, **fused):
        return atrous_pyramid(input, weights, [rate for _, _, rate in self.branches], **fused)

    @property
    def names(self):
        return ("input", *(f"weights[{i}]" for i in range(len(self.branches))))

    def tensors(self, dtype):
        """[input, weights ...] and the gradient that comes in."""
        tensors = [torch.randn(self.input), *(torch.randn(o, self.input[1], k, k) for o, k, _ in self.branches)]
        upstream = torch.randn(self.input[0], sum(o for o, _, _ in self.branches), *self.input[2:])
        return [x.to(dtype) for x in tensors], upstream.to(dtype)


CASES = {
    "aspp": Case((2, 8, 6, 7), ((8, 1, 1), (8, 3, 2), (8, 3, 4), (8, 3, 6))),
    "one-branch": Case((1, 8, 5, 5), ((16, 3, 3),)),
    "unlike-branches": Case((1, 5, 5, 6), ((3, 5, 2), (40, 1, 4), (7, 3, 5))),  # and odd numbers of channels
    "only-the-middle": Case((1, 8, 3, 3), ((8, 3, 9), (8, 3, 12))),
}


@each_place(OP)
@pytest.mark.parametrize("case", CASES)
def test_value(case, backend, device):
    """Without a gradient, which is the one launch."""
    case = CASES[case]
    tensors, _ = case.tensors(torch.float32)
    truth, usual = case.stock(*(x.double() for x in tensors)), case.stock(*tensors)
    chosen = layouts(tensors[0].to(device))
    if (backend, device) == INTERPRETER:
        chosen = {name: chosen[name] for name in IN_INTERPRETER}
    for name, x in chosen.items():
        before = x.clone()
        with fastseg.use_backend(backend):
            output = case.ours(x, *(weight.to(device) for weight in tensors[1:]))
            assert torch.equal(case.ours(x, *(weight.to(device) for weight in tensors[1:])), output), "two runs differ"
        assert torch.equal(x, before), "the input was written to"
        error = (output.cpu().double() - truth).abs().max()
        assert error <= 1.5 * (usual.double() - truth).abs().max() + 1e-6 * truth.abs().max(), name
        memory_format = torch.channels_last if name == "channels_last" else torch.contiguous_format
        assert output.is_contiguous(memory_format=memory_format)


@each_place(OP)
@pytest.mark.parametrize("case", ("aspp", "unlike-branches"))
def test_gradients(case, backend, device):
    case = CASES[case]
    check_tensors(case.ours, case.stock, case.names, *case.tensors(torch.float32), backend, device)


@each_place(OP)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision(dtype, backend, device):
    """The value is rounded once; the input's gradient once per branch and once per sum, as PyTorch's is."""
    case = CASES["aspp"]
    tensors, upstream = case.tensors(dtype)
    truth, usual = (results(case.stock, [x.to(d) for x in tensors], upstream) for d in (torch.float64, dtype))
    with fastseg.use_backend(backend):
        got = results(case.ours, [x.to(device) for x in tensors], upstream.to(device))
        got[0] = case.ours(*(x.to(device) for x in tensors))
    eps = torch.finfo(dtype).eps
    assert largest_error(got[0].cpu().double(), truth[0]) <= 0.51 * eps
    for result, exact, known in zip(got, truth, usual, strict=True):
        for error in (relative_error, largest_error):
            assert error(result.cpu().double(), exact) <= 1.5 * error(known.double(), exact) + eps / 2


@each_place(OP)
@pytest.mark.parametrize("relu", (False, True))
def test_batch_norm_and_relu(relu, backend, device):
    """As operations of their own, with a gradient; and fused."""
    case = CASES["aspp"]
    tensors, upstream = case.tensors(torch.float32)
    scale, bias = torch.randn(32), torch.randn(32)

    def stock(x, scale, bias, *weights):
        output = case.stock(x, *weights) * scale[:, None, None] + bias[:, None, None]
        return output.relu() if relu else output

    def ours(x, scale, bias, *weights):
        return case.ours(x, *weights, scale=scale, bias=bias, relu=relu)

    given = [tensors[0], scale, bias, *tensors[1:]]
    check_tensors(ours, stock, ("input", "scale", "bias", *case.names[1:]), given, upstream, backend, device)
    truth = stock(*(x.double() for x in given))
    with fastseg.use_backend(backend):
        output = ours(*(x.to(device) for x in given)).cpu()
    assert (output - truth).abs().max() <= 1e-5 * truth.abs().max()


@each_place(OP)
def test_empty_batch(backend, device):
    case = CASES["aspp"]
    tensors, upstream = case.tensors(torch.float32)
    x, *weights = (t.to(device) for t in tensors)
    with fastseg.use_backend(backend):
        assert case.ours(x[:0], *weights).shape == (0, 32, 6, 7)
        output, of_input, *of_weights = results(case.ours, [x[:0], *weights], upstream[:0].to(device))
    assert output.shape == (0, 32, 6, 7) and of_input.shape == (0, 8, 6, 7) and not any(g.any() for g in of_weights)


def test_branches_share_one_table():
    """Heavy tiles of all branches first; together they write every output once."""
    weights = [torch.empty(o, 4, k, k) for o, k in ((40, 1), (40, 3), (24, 3))]
    sides = branches((9, 9), weights, (1, 3, 6))
    table = tile_table(2, 4, tuple((*side, w.shape[0]) for side, w in zip(sides, weights, strict=True)), 32, "cpu")
    tiles = [dict(zip(TILE_FIELDS, row, strict=True)) for row in table.tolist()]
    taps = [tile["taps_y"] * tile["taps_x"] for tile in tiles]
    assert taps == sorted(taps, reverse=True) and {tile["dilation_y"] for tile in tiles if tile["kernel_x"] == 3} == {
        3,
        6,
    }
    firsts = {tile["channel"]: 0 for tile in tiles}
    for tile in tiles:
        pixels = min(128, 2 * tile["height"] * tile["width"] - tile["first"])
        firsts[tile["channel"]] += pixels
    assert sorted(firsts) == [0, 32, 40, 72, 80] and set(firsts.values()) == {2 * 81}
    starts = {tile["weight"] for tile in tiles if tile["taps_y"] * tile["taps_x"] == 9 or tile["kernel_x"] == 1}
    assert starts <= {0, 4 * 40, 4 * 40 * 10}


def test_dispatch_goes_by_the_work_of_all_branches(monkeypatch):
    monkeypatch.setattr(dispatch, "missing", dispatch.not_written)
    x = torch.empty(8, 64, 65, 65, dtype=torch.half)
    weights = [torch.empty(64, 64, k, k, dtype=torch.half) for k in (1, 3, 3, 3)]
    for rates, chosen in (((1, 12, 24, 36), "triton"), ((1, 2, 4, 6), "reference")):
        assert dispatch.choose(OP, "cuda", x, weights, None, None, rates, False, True)[0] == chosen


def test_gradcheck():
    tensors = [x.requires_grad_() for x in Case((1, 2, 3, 3), ((1, 3, 2), (2, 1, 1))).tensors(torch.float64)[0]]
    assert torch.autograd.gradcheck(lambda x, *w: atrous_pyramid(x, w, (2, 1), relu=True), tensors)
    assert torch.autograd.gradgradcheck(lambda x, *w: atrous_pyramid(x, w, (2, 1)), tensors)


@each_place(OP)
@pytest.mark.parametrize("channels_last", (False, True))
def test_the_raw_op_is_of_the_form_of_the_reference(channels_last, backend, device):
    x, weights = layouts(torch.randn(2, 5, 4, 3))["sliced"], [torch.randn(6, 5, 3, 3), torch.randn(3, 5, 1, 1)]
    arguments = (x.to(device), [w.to(device) for w in weights], torch.randn(9), None, [2, 1], True, channels_last)
    check_form(torch.ops.fastseg.atrous_pyramid, arguments, backend, device)


def test_opcheck():
    x, weights = torch.randn(2, 5, 4, 3), [torch.randn(6, 5, 3, 3), torch.randn(3, 5, 1, 1)]
    for channels_last in (False, True):
        op = torch.ops.fastseg.atrous_pyramid.default
        torch.library.opcheck(op, (x, weights, torch.randn(9), torch.randn(9), [2, 1], True, channels_last))


def test_compile_forward_and_backward():
    weights = [torch.randn(4, 5, 1, 1), torch.randn(4, 5, 3, 3)]

    def f(x, *weights):
        return atrous_pyramid(x * 2, weights, (1, 2)).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for n, h in ((2, 4), (3, 6)):  # a second shape makes the sizes symbolic
        tensors, upstream = [torch.randn(n, 5, h, 6), *weights], torch.randn(n, 8, h, 6)
        for a, b in zip(results(compiled, tensors, upstream), results(f, tensors, upstream), strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*tensors), f(*tensors))


def test_autocast():
    x, weights = torch.randn(1, 5, 4, 4), [torch.randn(4, 5, 1, 1), torch.randn(4, 5, 3, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        output = atrous_pyramid(x, weights, (1, 2))
    assert torch.equal(output, atrous_pyramid(x.bfloat16(), [w.bfloat16() for w in weights], (1, 2)))


X, W = torch.ones(1, 4, 3, 3), torch.ones(2, 4, 3, 3)


@pytest.mark.parametrize(
    "arguments, keywords, error, says",
    [
        ((X, W, [1]), {}, TypeError, "weights must be a list of tensors, at least one, got Tensor"),
        ((X, [], []), {}, TypeError, "at least one, got none"),
        ((X, [W, 3], [1, 2]), {}, TypeError, r"weights\[1\] must be a floating-point tensor, got int"),
        ((X[0], [W], [1]), {}, ValueError, "input must have 4 axes"),
        ((X, [W.half()], [1]), {}, TypeError, r"weights\[0\] must be torch.float32 as input is"),
        ((X, [W, W[:, :3]], [1, 2]), {}, ValueError, r"weights\[1\] must be \(O, 4, k, k\) with odd k, got \(2, 3"),
        ((X, [W[..., :2]], [1]), {}, ValueError, "with odd k"),
        ((X, [W], [1, 2]), {}, ValueError, r"dilations must be 1 ints from 1 on, .*got \[1, 2\]"),
        ((X, [W], [0]), {}, ValueError, r"dilations must be .*got \[0\]"),
        ((X, [W], 1), {}, ValueError, "dilations must be 1 ints from 1 on, .*got 1"),
        ((X, [W], [1]), {"bias": torch.ones(3)}, ValueError, r"bias must be \(2,\), got \(3,\)"),
        ((X, [W], [1]), {"scale": torch.ones(2).to("meta")}, ValueError, "scale must be on cpu as input is"),
    ],
)
def test_wrong_arguments(arguments, keywords, error, says):
    with pytest.raises(error, match=f"atrous_pyramid: .*{says}"):
        atrous_pyramid(*arguments, **keywords)


def test_no_forward_mode_derivative_is_lost():
    """Neither op has one, fused or not: an error says so."""
    run = {
        "atrous_conv2d": lambda x: atrous_conv2d(x, W, relu=True),
        "atrous_pyramid": lambda x: atrous_pyramid(x, [W], [1]),
    }
    for op in run.values():
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(op, (X,), (X,))
        with pytest.raises(NotImplementedError, match="jvp"), torch.no_grad():
            torch.func.jvp(op, (X,), (X,))
