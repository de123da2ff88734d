"""pyramid_conv2d and its gradients against F.conv2d over the concatenation in float64, on every backend."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from check import (
    COMING,
    INTERPRETER,
    NOT_COMPILED,
    assert_accurate,
    check_form,
    each_place,
    far_apart,
    largest_error,
    layouts,
    relative_error,
    results,
    special,
)
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import fastseg
from fastseg.ops import pyramid_conv2d
from fastseg.ops.pyramid_conv2d import MOST_CELLS
from fastseg.ops.pyramid_conv2d_matrix import MOST_MATRICES, _kept, cached_matrix, interpolation_matrix

OP = "pyramid_conv2d"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PSPNET = (1, 2, 3, 6)
FEW = (1, 2)  # each cell's taps take the interpreter long
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    input: tuple  # (N, C, H, W)
    bins: tuple = FEW
    channels: tuple | int = 3  # of each prior, or of all
    outputs: int = 4
    kernel: tuple = (3, 3)
    how: dict = field(default_factory=dict)
    bias: bool = True

    def tensors(self, dtype):
        """([input, weight, bias or nothing, priors ...], the gradient that comes in)"""
        sizes = [b if isinstance(b, tuple) else (b, b) for b in self.bins]
        channels = self.channels if isinstance(self.channels, tuple) else (self.channels,) * len(sizes)
        priors = [torch.randn(self.input[0], r, *size) for r, size in zip(channels, sizes, strict=True)]
        inputs = self.input[1] + sum(channels)
        weight = torch.randn(self.outputs, inputs, *self.kernel) / (inputs * self.kernel[0] * self.kernel[1]) ** 0.5
        bias = [torch.randn(self.outputs)] if self.bias else []
        tensors = [torch.randn(self.input), weight, *bias, *priors]
        shape = self.stock(*(x.to("meta") for x in tensors)).shape
        return [x.to(dtype) for x in tensors], torch.randn(shape).to(dtype)

    def _parts(self, *tensors):
        input, weight, *others = tensors
        return input, weight, others[0] if self.bias else None, others[1:] if self.bias else others

    def stock(self, *tensors):
        input, weight, bias, priors = self._parts(*tensors)
        how = {"padding": 1, "align_corners": False} | self.how
        align_corners = how.pop("align_corners")
        size = input.shape[2:]
        up = [F.interpolate(p, size, mode="bilinear", align_corners=align_corners) for p in priors]
        return F.conv2d(torch.cat([input, *up], 1), weight, bias, **how)

    def ours(self, *tensors):
        input, weight, bias, priors = self._parts(*tensors)
        return pyramid_conv2d(input, priors, weight, bias, **self.how)


ALIGNED = {"align_corners": True}

# Small enough for the interpreter, one reason each.
CASES = {
    "two priors": Case((2, 5, 6, 5)),
    "two priors, aligned": Case((1, 5, 7, 8), bins=(2, 3), how=ALIGNED),
    "one cell": Case((2, 5, 6, 5), bins=(1,)),  # a bias per image, but at the edges
    "1x1 kernel": Case((1, 6, 8, 7), kernel=(1, 1), how={"padding": 0}),
    "5x5 kernel": Case((1, 4, 7, 6), bins=(2,), kernel=(5, 5), how={"padding": 2}),
    "one axis": Case((1, 4, 7, 9), kernel=(2, 5), how={"padding": (1, 0)} | ALIGNED),
    "no padding": Case((1, 4, 8, 9), how={"padding": 0}),
    "more padding than kernel": Case((1, 3, 4, 5), how={"padding": (3, 4)}),  # rows of outputs that see nothing
    "priors of other widths": Case((2, 5, 8, 7), bins=((2, 3), 1, (1, 2)), channels=(7, 1, 4)),
    "larger than the map": Case((1, 4, 3, 2), bins=(4, (1, 5)), how=ALIGNED),
    "of the map's size": Case((1, 4, 3, 4), bins=((3, 4), 1)),
    "one pixel": Case((2, 4, 1, 1), how=ALIGNED),
    "one row": Case((1, 4, 1, 11)),
    "one channel, one output": Case((2, 1, 5, 6), channels=1, outputs=1),  # channels_last looks contiguous
    "no bias": Case((1, 5, 6, 7), bias=False),
    "33 to 65 channels": Case((1, 33, 5, 9), channels=33, outputs=65),  # one more than a block
    "17 columns": Case((1, 16, 5, 17), channels=16, outputs=16),  # tiles that end within an image
}
NAMES = ("input", "weight", "bias")


def named(case, tensors):
    names = [*NAMES[: 3 if case.bias else 2]]
    return [*names, *(f"prior {i}" for i in range(len(tensors) - len(names)))]


def compare(case, backend, device, dtype=torch.float32):
    """Output and all gradients, with the tensors in every layout (one in the interpreter). PyTorch's own in the
    memory format of the input tells what errors are usual: oneDNN's convolutions differ fourfold in that."""
    tensors, upstream = case.tensors(dtype)
    exact = results(case.stock, [x.double() for x in tensors], upstream)
    interpreted = (backend, device) == INTERPRETER
    turned = {"contiguous": "sliced", "channels_last": "channels_last", "sliced": "transposed", "transposed": "sliced"}
    for name in ["channels_last" if case.input[1] % 2 else "sliced"] if interpreted else turned:
        chosen = [name, *(turned[name] if x.dim() == 4 else "" for x in tensors[1:])]
        given = [
            layouts(x.to(device)).get(how) if how else x.to(device) for x, how in zip(tensors, chosen, strict=True)
        ]
        coming = layouts(upstream.to(device))[COMING[name]]
        before = [x.clone() for x in (*given, coming)]
        with fastseg.use_backend(backend):
            got = results(case.ours, given, coming)
        assert all(torch.equal(x, y) for x, y in zip((*given, coming), before, strict=True)), "an input was written to"
        channels_last = name == "channels_last" and not given[0].is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        alike = [x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in (*tensors, upstream)]
        usual = results(case.stock, alike[:-1], alike[-1])
        for what, y, truth, own in zip(("output", *named(case, tensors)), got, exact, usual, strict=True):
            assert y.dtype == dtype and y.shape == truth.shape
            accurate(f"{backend} on {device}, {name}: {what}", y, truth, own)
        assert got[0].is_contiguous(memory_format=memory_format), "not in the memory format of input"
    if not interpreted:  # which runs one program after another: always the same
        with fastseg.use_backend(backend):
            again = results(case.ours, given, coming)
        assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True)), "two runs differ"


def accurate(what, y, truth, usual):
    """In half precision 1.5 times the error of PyTorch's own, and a last bit: the slab and the weights of cells are
    rounded where PyTorch rounds upsampled priors."""
    if y.dtype == torch.float32:
        assert_accurate(what, y, truth, usual, usual, roundings=6)
        return
    for error in (relative_error, largest_error):
        ours, theirs = error(y.cpu().double(), truth), error(usual.double(), truth)
        assert ours <= 1.5 * theirs + torch.finfo(y.dtype).eps / 2, f"{what}: {error.__name__} {ours:.3g}, {theirs:.3g}"


@each_place(OP)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, backend, device):
    compare(CASES[case], backend, device)


@each_place(OP)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ("two priors", "two priors, aligned", "33 to 65 channels"))
def test_half_precision(case, dtype, backend, device):
    compare(CASES[case], backend, device, dtype)


@pytest.mark.parametrize("align_corners", (False, True), ids=("half_pixel", "align_corners"))
@pytest.mark.parametrize("case", CASES)
def test_exact_in_float64(case, align_corners):
    """To 1e-12: nothing is left out."""
    case = CASES[case]
    case = Case(**{**vars(case), "how": {**case.how, "align_corners": align_corners}})
    tensors, upstream = case.tensors(torch.float64)
    wanted = results(case.stock, tensors, upstream)
    for backend in ("composed", "reference"):
        with fastseg.use_backend(backend):
            got = results(case.ours, tensors, upstream)
        for y, truth in zip(got, wanted, strict=True):
            assert relative_error(y, truth) < 1e-12


@each_place(OP, without=[*NOT_COMPILED])
@pytest.mark.parametrize(
    "case, dtype",
    [
        (Case((2, 5, 9, 7), PSPNET), torch.float32),
        (Case((1, 5, 7, 10), PSPNET, how=ALIGNED), torch.float32),
        (Case((2, 5, 8, 7), ((2, 5), 3, (1, 4)), (7, 1, 4)), torch.float32),
        (Case((2, 16, 17, 16), (1, 4), 16, 16), torch.float32),
        (Case((1, 256, 60, 60), PSPNET, channels=64, outputs=64), torch.float32),
        (Case((2, 96, 33, 47), PSPNET, channels=24, outputs=40, how=ALIGNED), torch.float32),
        (Case((1, 64, 60, 59), PSPNET, channels=16, outputs=32), torch.bfloat16),
    ],
)
def test_real_shapes(case, dtype, backend, device):
    compare(case, backend, device, dtype)


@each_place(OP)
@pytest.mark.parametrize("case", ("two priors", "33 to 65 channels"))
def test_raw_ops(case, backend, device):
    """On a slab of its own: the sum over cells and taps, in float32, and its transpose; for one output channel too."""
    case = CASES[case]
    (x, weight, bias, *priors), upstream = case.tensors(torch.float32)
    bins, how = [side for p in priors for side in p.shape[2:]], ([1, 1], False)
    cells, outputs = sum(p[0, 0].numel() for p in priors), weight.shape[0]
    slab, own = torch.randn(len(x), cells, 3, 3, outputs), weight[:, : x.shape[1]]
    matrix = interpolation_matrix(bins, x.shape[2:], (3, 3), *how, torch.float64, x.device)
    added = (matrix @ slab.double().flatten(1, 3)).mT.unflatten(2, x.shape[2:])
    truth = F.conv2d(x.double(), own.double(), bias.double(), padding=1) + added
    gathered = torch.einsum("pk,nop->nko", matrix, upstream.double().flatten(2)).view(slab.shape)
    for layout, channels_last in (("contiguous", False), ("channels_last", True)):
        given = layouts(x.to(device))[layout], own.to(device), slab.to(device), bias.to(device)
        with fastseg.use_backend(backend):
            output = torch.ops.fastseg.pyramid_conv2d(*given, bins, *how, channels_last).cpu()
            grad = layouts(upstream.to(device))[layout]
            of_slab = torch.ops.fastseg.pyramid_conv2d_backward_slab(grad, bins, [3, 3], [1, 1], x.shape[2:], False)
        for y, exact in ((output, truth), (of_slab.cpu(), gathered)):
            assert relative_error(y.double(), exact) < 1e-6 and largest_error(y.double(), exact) < 3e-6


@each_place(OP)
def test_nan_and_inf_of_the_input(backend, device):
    """They reach what their taps reach, and one image of a prior's no other image."""
    case = CASES["two priors"]
    tensors, _ = case.tensors(torch.float32)
    for c, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        tensors[0][0, c, 2, 2 * c] = value
    wanted = case.stock(*tensors)
    with fastseg.use_backend(backend):
        got = case.ours(*(x.to(device) for x in tensors)).cpu()
        assert torch.equal(special(got), special(wanted))
        tensors[-1][1, 0, 0, 0] = float("nan")
        got, wanted = case.ours(*(x.to(device) for x in tensors)).cpu(), case.stock(*tensors)
    assert torch.equal(special(got[0]), special(wanted[0]))
    assert got[1].isnan()[wanted[1].isnan()].all()


@each_place(OP)
def test_empty_batch_and_expanded_tensors(backend, device):
    case = CASES["two priors"]
    tensors, upstream = case.tensors(torch.float32)
    tensors, upstream = [x.to(device) for x in tensors], upstream.to(device)
    with fastseg.use_backend(backend):
        few = [x[:0] if k not in (1, 2) else x for k, x in enumerate(tensors)]
        output, of_input, of_weight, _, *of_priors = results(case.ours, few, upstream[:0])
        assert output.shape == (0, *upstream.shape[1:]) and of_input.shape == few[0].shape and not of_weight.any()
        assert [y.shape for y in of_priors] == [x.shape for x in few[3:]]
        many = [x[:1, :, :1].expand_as(x) if k in (0, 5) else x for k, x in enumerate(tensors)]
        one = upstream[..., :1, :1].expand_as(upstream)
        same = results(case.ours, [x.contiguous() for x in many], one.contiguous())
        for a, b in zip(results(case.ours, many, one), same, strict=True):
            torch.testing.assert_close(a, b)


@each_place(OP)
def test_big_magnitudes(backend, device):
    """Small products of what is large and what is small."""
    case = CASES["no bias"]
    (x, weight, *priors), _ = case.tensors(torch.float32)
    large = [x * 1e30, weight * 1e-30, *(p * 1e30 for p in priors)]
    truth = case.stock(*(t.double() for t in large))
    with fastseg.use_backend(backend):
        got = case.ours(*(t.to(device) for t in large)).cpu().double()
    assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()


@each_place(OP, without=[INTERPRETER])  # which copies whole storages
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, backend, device):
    case = Case((2, 2, 2, 2), bins=(2,), channels=2, outputs=2, kernel=(2, 2), how={"padding": (1, 0)})
    tensors, upstream = case.tensors(torch.float16)
    near = [x.to(device) for x in (*tensors, upstream)]
    far = [far_apart(x, axis) if x.dim() == 4 and x.shape[axis] == 2 else x for x in near]
    with fastseg.use_backend(backend):
        a, b = (results(case.ours, given[:-1], given[-1]) for given in (near, far))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)  # other layouts, other products


@st.composite
def cases(draw):
    side = st.integers(1, 7)
    bins = tuple(draw(st.lists(st.tuples(side, side), min_size=1, max_size=4)))
    channels = tuple(draw(st.integers(1, 9)) for _ in bins)
    shape = tuple(draw(st.integers(1, n)) for n in (2, 20, 14, 14))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(max(draw(st.integers(0, 3)), (k - n + 1) // 2) for k, n in zip(kernel, shape[2:], strict=True))
    how = {"padding": padding, "align_corners": draw(st.booleans())}
    return Case(shape, bins, channels, draw(st.integers(1, 20)), kernel, how, draw(st.booleans()))


@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(case=cases(), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case, dtype):
    compare(case, None, "cpu", dtype)  # None: the backend that a user gets


@pytest.mark.parametrize("bins", ((), ((MOST_CELLS // 16, 16), 1), (40, 2)))
def test_no_priors_or_too_many_cells(bins):
    """Then it is the convolution of the concatenation."""
    case = Case((2, 5, 9, 7), bins)
    tensors, upstream = case.tensors(torch.float32)
    _kept.cache_clear()
    got, wanted = (results(f, tensors, upstream) for f in (case.ours, case.stock))
    assert _kept.cache_info().currsize == 0
    for y, truth in zip(got, wanted, strict=True):
        torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-4)


def test_kept_matrices():
    """One for each form, a few at most, and nothing of a trace among them."""
    _kept.cache_clear()
    form = (1, 1, 2, 2), (9, 7), (3, 3), (1, 1)
    matrix = cached_matrix(*form, False, torch.float32, torch.device("cpu"))
    assert matrix is cached_matrix(*map(list, form), False, torch.float32, torch.device("cpu"))
    others = [
        cached_matrix(*form, True, torch.float32, torch.device("cpu")),
        cached_matrix(*form, False, torch.float64, torch.device("cpu")),
        cached_matrix(form[0], (8, 7), *form[2:], False, torch.float32, torch.device("cpu")),
        cached_matrix(*form[:3], (0, 1), False, torch.float32, torch.device("cpu")),
    ]
    assert all(other is not matrix for other in others)
    assert torch.equal(matrix, interpolation_matrix(*form, False, torch.float32, torch.device("cpu")))
    for height in range(20):
        cached_matrix(form[0], (9 + height, 7), *form[2:], False, torch.float32, torch.device("cpu"))
    assert _kept.cache_info().currsize == MOST_MATRICES
    case = CASES["two priors"]
    tensors, _ = case.tensors(torch.float32)
    _kept.cache_clear()
    with torch.inference_mode():
        case.ours(*tensors)
    torch.compile(case.ours, fullgraph=True, backend="aot_eager")(*tensors)
    results(case.ours, *case.tensors(torch.float32))
    assert _kept.cache_info().currsize == 1


def test_gradcheck():
    """In float64, through the public function; and the gradients' gradients."""
    case = Case((2, 2, 3, 4), (2, (1, 3)), (2, 3), 2, (2, 3), {"padding": (0, 1)})
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64)[0]]
    assert torch.autograd.gradcheck(case.ours, tensors)
    assert torch.autograd.gradgradcheck(case.ours, tensors)


@pytest.mark.parametrize("only", ("input", "weight", "bias", "prior 1"))
def test_gradient_of_one_tensor(only):
    """What is not asked for is not computed; what is asked for is the same."""
    case = CASES["two priors"]
    tensors, upstream = case.tensors(torch.float32)
    k = named(case, tensors).index(only)
    wanted = results(case.ours, tensors, upstream)[1 + k]
    tensors[k].requires_grad_()
    (got,) = torch.autograd.grad(case.ours(*tensors), tensors[k], upstream)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # oneDNN's own depend on what else it computes


@each_place(OP)
def test_weight_of_another_format(backend, device):
    """The input alone decides the format of the output."""
    case = CASES["33 to 65 channels"]
    tensors, upstream = case.tensors(torch.float32)
    wanted = results(case.stock, tensors, upstream)
    formats = torch.contiguous_format, torch.channels_last
    for of_input, of_weight in (formats, formats[::-1]):
        x, weight = (t.contiguous(memory_format=how) for t, how in zip(tensors, (of_input, of_weight), strict=False))
        with fastseg.use_backend(backend):
            got = results(case.ours, [t.to(device) for t in (x, weight, *tensors[2:])], upstream.to(device))
        assert got[0].is_contiguous(memory_format=of_input)
        for y, truth in zip(got, wanted, strict=True):
            torch.testing.assert_close(y.cpu(), truth, rtol=1e-4, atol=1e-4)


def test_gradient_of_the_weight_is_laid_out_as_it():
    tensors, upstream = CASES["two priors"].tensors(torch.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = tensors[1].contiguous(memory_format=layout)
        of_weight = results(CASES["two priors"].ours, [tensors[0], weight, *tensors[2:]], upstream)[2]
        assert of_weight.is_contiguous(memory_format=layout)


@each_place(OP)
@pytest.mark.parametrize("channels_last", (False, True))
def test_raw_ops_are_of_the_form_of_the_reference(channels_last, backend, device):
    x, grad = (layouts(torch.randn(2, c, 4, 5).half())["sliced"] for c in (6, 3))
    weight, slab, bins = torch.randn(3, 6, 3, 3).half(), torch.randn(2, 5, 3, 3, 3).half(), [1, 1, 2, 2]
    check_form(
        torch.ops.fastseg.pyramid_conv2d, (x, weight, slab, None, bins, [1, 1], False, channels_last), backend, device
    )
    backward = torch.ops.fastseg.pyramid_conv2d_backward_slab
    check_form(backward, (grad, bins, [3, 3], [1, 1], [4, 5], False), backend, device)


def test_opcheck():
    x, weight, bias, slab = torch.randn(2, 6, 4, 5), torch.randn(3, 6, 3, 3), torch.randn(3), torch.randn(2, 5, 3, 3, 3)
    for channels_last in (False, True):
        arguments = x, weight, slab, bias, [1, 1, 2, 2], [1, 1], False, channels_last
        torch.library.opcheck(torch.ops.fastseg.pyramid_conv2d.default, arguments)
    backward = torch.ops.fastseg.pyramid_conv2d_backward_slab.default
    torch.library.opcheck(backward, (torch.randn(2, 3, 4, 5), [1, 1, 2, 2], [3, 3], [1, 1], [4, 5], True))


def test_compile_forward_and_backward():
    def f(x, *others):
        return CASES["two priors"].ours(x * 2, *others).sin()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    formats = torch.contiguous_format, torch.channels_last
    for size, memory_format in zip(((2, 5, 9, 7), (3, 5, 8, 11)), formats, strict=True):  # the second is symbolic
        tensors, upstream = Case(size, (2, (3, 1))).tensors(torch.float32)
        given = [x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in tensors]
        pairs = zip(results(compiled, given, upstream), results(f, given, upstream), strict=True)
        for k, (a, b) in enumerate(pairs):
            torch.testing.assert_close(a, b)
            assert k > 0 or a.stride() == b.stride()


def test_autocast_and_inference_mode():
    case = CASES["two priors"]
    tensors, upstream = case.tensors(torch.float32)
    low = [x.bfloat16() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        output, *grads = results(case.ours, tensors, upstream)
        assert case.stock(*tensors).dtype == output.dtype == torch.bfloat16
        mixed = case.ours(low[0], *tensors[1:])
    assert all(grad.dtype == torch.float32 for grad in grads)
    plain = results(case.ours, low, upstream)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip((output, *grads), plain, strict=True))
    assert torch.equal(mixed, plain[0])
    with torch.inference_mode():
        assert torch.equal(case.ours(*tensors), case.ours(*tensors))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms():
    case = Case((1, 4, 5, 6), (1, 2), 3)
    tensors, _ = case.tensors(torch.float32)
    many = [torch.stack([x, x + 1, x * 2]) if k in (0, 3, 4) else x for k, x in enumerate(tensors)]
    dims = tuple(0 if k in (0, 3, 4) else None for k in range(len(tensors)))
    mapped = torch.vmap(case.ours, dims)(*many)
    each = [case.ours(*(x[i] if dim == 0 else x for x, dim in zip(many, dims, strict=True))) for i in range(3)]
    torch.testing.assert_close(mapped, torch.stack(each))
    ours, theirs = (
        torch.vmap(torch.func.grad(lambda w, x, f=f: f(x, w, *tensors[2:]).square().sum()), (None, 0))(
            tensors[1], many[0]
        )
        for f in (case.ours, case.stock)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="jvp|forward"):  # an error, not a tangent of zero
        torch.func.jvp(lambda x: case.ours(x, *tensors[1:]), (tensors[0],), (tensors[0],))


X, P, W = torch.ones(1, 4, 5, 5), torch.ones(1, 3, 2, 2), torch.ones(2, 7, 3, 3)


@pytest.mark.parametrize(
    "arguments, keywords, error, says",
    [
        (([[1.0]], [P], W), {}, TypeError, "input must be a floating-point tensor, got list"),
        ((X, P, W), {}, TypeError, "priors must be a list of tensors, got Tensor"),
        ((X, [P.int()], W), {}, TypeError, r"priors\[0\] must be a floating-point tensor, got torch.int32"),
        ((X, [P, 3], W), {}, TypeError, r"priors\[1\] must be a floating-point tensor, got int"),
        ((X[0], [P], W), {}, ValueError, r"input must have 4 axes, .*got \(4, 5, 5\)"),
        ((X, [P[..., :0]], W), {}, ValueError, r"priors\[0\] must have 4 axes, from 1 long on"),
        ((X, [P], W, W), {}, ValueError, r"bias must have 1 axes, .*got \(2, 7, 3, 3\)"),
        ((X, [P], W.half()), {}, TypeError, "weight must be torch.float32 as input is, got torch.float16"),
        ((X, [P.to("meta")], W), {}, ValueError, r"priors\[0\] must be on cpu as input is, got meta"),
        ((X, [P.expand(2, -1, -1, -1)], W), {}, ValueError, r"priors\[0\] must be of 1 images as input has, got \(2, "),
        ((X, [P, P], W), {}, ValueError, r"weight must be \(O, 4 \+ 3 \+ 3, kh, kw\) .*got \(2, 7, 3, 3\)"),
        ((X, [P], W, torch.ones(3)), {}, ValueError, r"bias must be \(2,\), got \(3,\)"),
        ((X, [P], W), {"padding": -1}, ValueError, "padding must be an int or two, from 0 on, got -1"),
        ((X, [P], W), {"padding": "same"}, ValueError, "padding must be an int or two, .*got 'same'"),
        (
            (X[..., :1], [P], W),
            {"padding": 0},
            ValueError,
            r"padding must be .* 5 x 1 .* kernel of 3 x 3, got \(0, 0\)",
        ),
    ],
)
def test_wrong_arguments(arguments, keywords, error, says):
    with pytest.raises(error, match=f"pyramid_conv2d: .*{says}"):
        pyramid_conv2d(*arguments, **keywords)
