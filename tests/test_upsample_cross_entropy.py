"""upsample_cross_entropy and its gradient against float64, on every backend; and a small network trained with it."""

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
    peak_memory,
    special,
    value_and_grad,
)
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import fastseg
from fastseg.ops import upsample_cross_entropy

OP = "upsample_cross_entropy"
REDUCTIONS = ("none", "mean", "sum")
TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)
pytestmark = pytest.mark.usefixtures("one_thread")

# name: (N, C, h, w), (H, W); small enough for the interpreter, one reason each
CASES = {
    "x8": ((1, 19, 4, 5), (32, 40)),  # the networks' usual factor: whole cells
    "x8 less one": ((2, 5, 4, 4), (25, 25)),  # 513 from 65: cells of 7 and 8 outputs
    "x32": ((1, 3, 2, 2), (64, 70)),  # FCN-32s: a cell is more than one tile
    "x1.5": ((2, 4, 6, 5), (9, 7)),  # cells of one and two outputs
    "same size": ((1, 4, 5, 7), (5, 7)),
    "down": ((1, 5, 9, 8), (4, 3)),  # some inputs are read by nobody: their gradient is 0
    "up and down": ((1, 3, 4, 9), (11, 4)),
    "one pixel": ((1, 7, 1, 1), (5, 6)),  # a single cell, its own neighbour
    "one row": ((1, 3, 1, 9), (7, 20)),
    "to one pixel": ((2, 3, 6, 6), (1, 1)),  # scale 0 with align_corners
    "one class": ((2, 1, 3, 3), (6, 6)),  # the loss is 0
    "two classes": ((1, 2, 3, 3), (6, 7)),
    "33 classes": ((1, 33, 3, 3), (6, 7)),  # one more than a vector or block of classes
    "150 classes": ((1, 150, 2, 3), (5, 7)),
    "wide": ((1, 2, 2, 70), (3, 150)),  # more columns than one program or block takes
}


def logits_and_target(shape, size, ignored=-100):
    """Random, with every eighth pixel or so ignored."""
    target = torch.randint(shape[1], (shape[0], *size))
    return 3 * torch.randn(shape), target.masked_fill_(torch.rand(target.shape) < 1 / 8, ignored)


def functions(target, weight=None, align_corners=False, **how):
    """(ours, PyTorch's) as functions of the logits, on any device."""

    def ours(x):
        moved = None if weight is None else weight.to(x.device)
        return upsample_cross_entropy(x, target.to(x.device), moved, align_corners=align_corners, **how)

    def theirs(x):
        x = x if x.dtype == torch.float64 else x.float()
        z = F.interpolate(x, target.shape[1:], mode="bilinear", align_corners=align_corners)
        return F.cross_entropy(z, target.long(), None if weight is None else weight.to(x.dtype), **how)

    return ours, theirs


def on_backend(backend, device, x, target, **how):
    """(loss, gradient of its sum) on the CPU."""
    with fastseg.use_backend(backend):
        ours, _ = functions(target, **how)
        loss, grad = value_and_grad(ours, x.to(device))
    return loss.cpu(), grad.cpu()


def with_pytorch(x, target, **how):
    return value_and_grad(functions(target, **how)[1], x)


def compare(x, target, backend, device, expanded=False, **how):
    # Interpolating rounds 4 times and gathering 4. Between them: z - max, exp (twice), the sum, its inverse or log,
    # times a, minus the target's share, times the gradient that comes in.
    check_differentiable(*functions(target, **how), x, backend, device, roundings=16, expanded=expanded)


@each_place(OP)
@pytest.mark.parametrize(
    "align_corners, reduction", ((False, "mean"), (True, "none")), ids=("half_pixel-mean", "align_corners-none")
)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, align_corners, reduction, backend, device):
    x, target = logits_and_target(*CASES[case])
    compare(x, target, backend, device, align_corners=align_corners, reduction=reduction)


@each_place(OP)
@pytest.mark.parametrize(
    "dtype, reduction", ((torch.float16, "none"), (torch.bfloat16, "mean"), (torch.bfloat16, "none"))
)
def test_half_precision(dtype, reduction, backend, device):
    x, target = logits_and_target(*CASES["x8 less one"])
    compare(x.to(dtype), target, backend, device, reduction=reduction)


@each_place(OP)
def test_expanded_gradient(backend, device):
    x, target = logits_and_target(*CASES["x1.5"])
    compare(x, target, backend, device, expanded=True, reduction="none")


CLASS_WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0, 1e-3])
OPTIONS = {
    "sum": {"reduction": "sum"},
    "weight, mean": {"weight": CLASS_WEIGHTS},
    "weight, none": {"weight": CLASS_WEIGHTS, "reduction": "none"},
    "strided float16 weight": {"weight": torch.arange(10.0).half()[::2]},
    "ignore 255": {"ignore_index": 255, "reduction": "none"},
    "ignore a class": {"ignore_index": 2},
    "smoothing, mean": {"label_smoothing": 0.1},
    "smoothing, none": {"label_smoothing": 0.1, "reduction": "none"},
    "smoothing and weight, mean": {"label_smoothing": 0.3, "weight": CLASS_WEIGHTS, "ignore_index": 255},
    "smoothing and weight, none": {"label_smoothing": 0.3, "weight": CLASS_WEIGHTS, "reduction": "none"},
    "only smoothing": {"label_smoothing": 1.0, "reduction": "sum"},
}


@each_place(OP)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, backend, device):
    x, target = logits_and_target((2, 5, 3, 4), (10, 9), OPTIONS[option].get("ignore_index", -100))
    before = target.clone()
    compare(x, target, backend, device, **OPTIONS[option])
    assert torch.equal(target, before), "the target was written to"


@each_place(OP)
@pytest.mark.parametrize(
    "case, reduction", (("x8 less one", "mean"), ("x32", "none"), ("33 classes", "mean"), ("down", "none"))
)
def test_smoothing_and_weights_at_the_edges(case, reduction, backend, device):
    x, target = logits_and_target(*CASES[case])
    weight = torch.rand(x.shape[1]) + 0.1
    compare(x, target, backend, device, weight=weight, label_smoothing=0.2, reduction=reduction)


@each_place(OP)
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
def test_whole_regions_and_images_ignored(reduction, backend, device):
    x, target = logits_and_target((2, 4, 3, 4), (24, 32))
    target[0] = target[1, :, 11:] = target[1, 13:] = -100
    compare(x, target, backend, device, reduction=reduction)


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
@pytest.mark.parametrize(
    "shape, size, dtype",
    [((1, 21, 65, 65), (513, 513), torch.float32), ((1, 150, 30, 31), (237, 241), torch.bfloat16)],
)
def test_real_shapes(shape, size, dtype, reduction, backend, device):
    x, target = logits_and_target(shape, size)
    compare(x.to(dtype), target, backend, device, reduction=reduction)


@each_place(OP)
@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_dtypes_and_layouts_of_the_target(dtype, backend, device):
    x, target = logits_and_target((1, 5, 2, 3), (7, 8), ignored=255)
    wanted = with_pytorch(x, target, ignore_index=255)
    for given in layouts(target.to(dtype)).values():
        torch.testing.assert_close(on_backend(backend, device, x, given, ignore_index=255), wanted)


@each_place(OP)
def test_minus_100_is_not_a_uint8(backend, device):
    """Not even 156, which has the same bits."""
    x, target = torch.randn(1, 160, 1, 2), torch.tensor([[[156, 3], [0, 156]]])
    torch.testing.assert_close(on_backend(backend, device, x, target.to(torch.uint8)), with_pytorch(x, target))


@each_place(OP)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_learn_from(reduction, backend, device):
    """All ignored, or no images at all: mean is nan and sum 0, as in F.cross_entropy, and the gradient is 0."""
    for images in (2, 0):
        x, target = torch.randn(images, 3, 2, 2), torch.full((images, 4, 5), 255)
        value, grad = on_backend(backend, device, x, target, ignore_index=255, reduction=reduction)
        wanted = functions(target, ignore_index=255, reduction=reduction)[1](x)
        torch.testing.assert_close(value, wanted, equal_nan=True)
        assert torch.equal(grad, torch.zeros_like(x))


SPECIAL = (float("nan"), float("inf"), -float("inf"))


@each_place(OP)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_pixels_have_no_say(reduction, backend, device):
    """Not even where their logits are NaN or inf."""
    clean, target = logits_and_target((3, 4, 3, 4), (24, 32))
    target[:, :12, :12] = -100  # all that reads the first logits
    x = clean.clone()
    x[:, 1, 0, 0] = torch.tensor(SPECIAL)
    how = {"reduction": reduction, "label_smoothing": 0.1}
    torch.testing.assert_close(on_backend(backend, device, x, target, **how), with_pytorch(clean, target, **how))


# Powers of two as scales, so that every weight is exact, zeros included; and axes that keep their size.
EXACT = {"up": (False, (16, 20)), "aligned": (True, (13, 17)), "down": (False, (2, 5)), "same size": (False, (4, 5))}


@each_place(OP)
@pytest.mark.parametrize("reduction", ("none", "sum"))
@pytest.mark.parametrize("case", EXACT)
def test_nan_and_inf(case, reduction, backend, device):
    """In the loss and in the gradient where PyTorch on the CPU has them, and nowhere else."""
    align_corners, size = EXACT[case]
    x, target = torch.randn(3, 3, 4, 5), torch.randint(3, (3, *size))
    x[:, 0, 1, 1] = x[:, 1, 3, 4] = torch.tensor(SPECIAL)
    how = {"reduction": reduction, "align_corners": align_corners}
    value, grad = on_backend(backend, device, x, target, **how)
    wanted_value, wanted_grad = with_pytorch(x, target, **how)
    assert torch.equal(special(value), special(wanted_value))
    assert torch.equal(special(grad), special(wanted_grad))


@each_place(OP)
@pytest.mark.parametrize("step", (64.0, 1.0, 0.25))
@pytest.mark.parametrize("option", ("weight, none", "smoothing and weight, mean"))
def test_big_logits(option, step, backend, device):
    """Neighbours differ by tens, hundreds, thousands: with one maximum for a cell, all exps of a pixel would be 0.

    Whole multiples of a power of two upsampled by 8 are exact in float32, so the errors are those of small logits.
    """
    _, target = logits_and_target((1, 5, 3, 4), (24, 32), OPTIONS[option].get("ignore_index", -100))
    x = torch.randint(-156, 157, (1, 5, 3, 4)) * step
    compare(x, target, backend, device, **OPTIONS[option])


@each_place(OP)
def test_mean_is_sum_over_weights(backend, device):
    """And without a gradient they are the same."""
    x, target = logits_and_target((2, 5, 3, 4), (10, 9))
    with fastseg.use_backend(backend):
        mean, total = (
            functions(target, CLASS_WEIGHTS, reduction=how)[0](x.to(device)).cpu() for how in ("mean", "sum")
        )
    torch.testing.assert_close(mean, total / CLASS_WEIGHTS[target[target >= 0]].sum())
    torch.testing.assert_close(mean, functions(target, CLASS_WEIGHTS)[1](x))


@each_place(OP, without=[(backend, "cuda") for backend in fastseg.dispatch.BACKENDS])
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
@pytest.mark.parametrize(
    "dtype, wrong",
    [
        (torch.int64, 5),
        (torch.int64, -1),
        (torch.int64, 2**32 + 1),  # a class, if cut to 32 bits
        (torch.int64, 2**32 + 255),  # ignore_index, if cut to 32 bits
        (torch.int32, -7),
        (torch.uint8, 5),
    ],
)
def test_target_out_of_range(dtype, wrong, reduction, backend, device):
    """On a GPU it is a device-side assertion, after which the process has no GPU: not tried."""
    target = torch.randint(5, (2, 9, 8)).to(dtype)
    target[1, 8, 7] = wrong
    x = torch.randn(2, 5, 3, 3, requires_grad=True)
    with fastseg.use_backend(backend), pytest.raises((RuntimeError, IndexError), match="(?i)target"):
        upsample_cross_entropy(x, target, ignore_index=255, reduction=reduction)


@each_place(OP, without=NOT_COMPILED)
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
def test_the_upsampled_logits_are_never_made(reduction, backend, device):
    x, target = logits_and_target((1, 150, 64, 64), (512, 512))
    x, target, upsampled = x.to(device), target.to(device), 4 * 150 * 512 * 512
    ours, _ = functions(target, reduction=reduction)
    with fastseg.use_backend(backend):
        assert peak_memory(device, lambda: value_and_grad(ours, x)) < upsampled / 4


@each_place(OP)
def test_expanded_input(backend, device):
    x, target = torch.randn(1, 4, 3, 3, device=device), torch.randint(4, (3, 7, 8), device=device)
    with fastseg.use_backend(backend):
        many = x.expand(3, -1, -1, -1)
        for left, right in ((many, target), (many.contiguous(), target[:1].expand(3, -1, -1))):
            expected = upsample_cross_entropy(left.contiguous(), right.contiguous())
            assert torch.equal(upsample_cross_entropy(left, right), expected)


@each_place(OP, without=[INTERPRETER])  # which copies whole storages
@pytest.mark.parametrize("axis", range(4))
def test_strides_past_2_to_31(axis, backend, device):
    x, target = torch.randn(2, 2, 2, 2).half().to(device), torch.randint(2, (2, 2, 2)).to(torch.uint8).to(device)
    upstream = torch.randn(2, 2, 2).to(device)
    far_target = far_apart(target, axis - 1) if axis > 0 else target
    with fastseg.use_backend(backend):
        near = value_and_grad(lambda x: upsample_cross_entropy(x, target, reduction="none"), x, upstream)
        far = value_and_grad(
            lambda x: upsample_cross_entropy(x, far_target, reduction="none"), far_apart(x, axis), upstream
        )
    torch.testing.assert_close(far, near)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_threads_share_the_work(reduction):
    """Several chunks of rows and images, whatever the number of cores: the same bits as one thread."""
    x, target = logits_and_target((3, 5, 9, 20), (130, 150))
    ours, theirs = functions(target, reduction=reduction)
    upstream = torch.randn_like(theirs(x))
    one, *more = bits_by_threads(lambda: value_and_grad(ours, x, upstream))
    for results in more:
        assert torch.equal(one[0], results[0]) and torch.equal(one[1], results[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 40, 9, 20))),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    weighted=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
    target_dtype=st.sampled_from(TARGET_DTYPES),
    how=st.fixed_dictionaries(
        {
            "align_corners": st.booleans(),
            "label_smoothing": st.sampled_from((0.0, 0.1)),
            "reduction": st.sampled_from(REDUCTIONS),
        }
    ),
)
def test_random_shapes(shape, size, weighted, dtype, target_dtype, how):
    x, target = logits_and_target(shape, size, ignored=255)
    weight = torch.rand(shape[1]) + 0.1 if weighted else None
    if how["reduction"] == "mean" and (target == 255).all():
        return  # nan: test_nothing_to_learn_from
    target = target.to(target_dtype)
    compare(x.to(dtype), target, None, "cpu", weight=weight, ignore_index=255, **how)  # None: as a user gets it


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    """In float64, which runs the reference, through the public function."""
    x, target = logits_and_target((2, 3, 3, 2), (5, 7))
    x, weight = x.double().requires_grad_(), torch.rand(3)
    ours, _ = functions(target, weight, label_smoothing=0.2, reduction=reduction)
    assert torch.autograd.gradcheck(ours, x)


@each_place(OP)
def test_raw_ops_are_of_the_form_of_the_reference(backend, device):
    x, target = logits_and_target((1, 5, 2, 3), (3, 4))
    arguments = x.half(), target, None, -100, 0.1, False
    for reduce, with_grad in ((False, False), (True, False), (True, True)):
        op = torch.ops.fastseg.upsample_cross_entropy
        check_form(op, (*arguments, reduce, with_grad), backend, device)
    op = torch.ops.fastseg.upsample_cross_entropy_backward
    check_form(op, (torch.randn(1, 3, 4), *arguments), backend, device)


def test_opcheck():
    x, target = logits_and_target((2, 5, 4, 6), (9, 12))
    backward = torch.ops.fastseg.upsample_cross_entropy_backward.default
    arguments = layouts(x)["sliced"], target, torch.rand(5), -100, 0.1, False
    torch.library.opcheck(backward, (torch.randn(2, 9, 12), *arguments))
    arguments = layouts(x)["channels_last"], target, None, -100, 0.1, False
    for reduce, with_grad in ((False, False), (True, False), (True, True)):
        torch.library.opcheck(torch.ops.fastseg.upsample_cross_entropy.default, (*arguments, reduce, with_grad))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile_forward_and_backward(reduction):
    def f(x, target):
        return 3 * upsample_cross_entropy(x * 2, target, torch.ones(5), reduction=reduction)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape, size in (((2, 5, 4, 6), (9, 12)), ((3, 5, 7, 8), (11, 10))):  # the second makes the sizes symbolic
        x, target = logits_and_target(shape, size)
        upstream = torch.randn_like(f(x, target))
        x = x.contiguous(memory_format=torch.channels_last)
        result = value_and_grad(lambda x, t=target: compiled(x, t), x, upstream)
        wanted = value_and_grad(lambda x, t=target: f(x, t), x, upstream)
        assert torch.equal(result[0], wanted[0]) and torch.equal(result[1], wanted[1])
        assert result[1].stride() == wanted[1].stride()


def test_export():
    class Loss(torch.nn.Module):
        def forward(self, x, target):
            return upsample_cross_entropy(x, target)

    batch = torch.export.Dim("batch", min=1, max=64)
    few, more = (logits_and_target((n, 5, 4, 6), (9, 12)) for n in (2, 5))
    exported = torch.export.export(Loss(), few, dynamic_shapes=({0: batch}, {0: batch})).module()
    assert torch.equal(exported(*more), upsample_cross_entropy(*more))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_func_grad_and_inference_mode(reduction):
    x, target = logits_and_target((2, 5, 4, 6), (9, 12))
    ours, _ = functions(target, reduction=reduction)
    plain = value_and_grad(ours, x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_and_grad(ours, x)
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])
    assert torch.equal(torch.func.grad(lambda x: ours(x).sum())(x), plain[1])
    with torch.inference_mode():
        inferred = ours(x.requires_grad_())
    assert not inferred.requires_grad
    torch.testing.assert_close(inferred, plain[0])


X, TARGET, WEIGHT = torch.ones(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (([[1.0]], TARGET), TypeError, "input must be a floating-point tensor, got list"),
        ((X.int(), TARGET), TypeError, "input must be a floating-point tensor, got torch.int32"),
        ((X[0], TARGET), ValueError, r"input must be \(N, C, h, w\).*got \(3, 4, 4\)"),
        ((X[:, :0], TARGET), ValueError, "C, h, w >= 1"),
        ((X, [[0]]), TypeError, "target must be class indices in int64, int32 or uint8, got list"),
        ((X, TARGET.float()), TypeError, "target must be class indices.*got torch.float32"),
        ((X, TARGET.bool()), TypeError, "target must be class indices.*got torch.bool"),
        ((X, TARGET[0]), ValueError, r"target must be \(2, H, W\) with H, W >= 1, got \(8, 8\)"),
        ((X, TARGET[:1]), ValueError, r"target must be \(2, H, W\).*got \(1, 8, 8\)"),
        ((X, TARGET[:, :0]), ValueError, r"target must be .*got \(2, 0, 8\)"),
        ((X, TARGET.to("meta")), ValueError, "target must be on cpu as input is, got meta"),
        ((X, TARGET, [1, 1, 1]), TypeError, "weight must be a floating-point tensor or None, got list"),
        ((X, TARGET, WEIGHT.int()), TypeError, "weight must be a floating-point tensor or None, got torch.int32"),
        ((X, TARGET, WEIGHT[:2]), ValueError, r"weight must be \(3,\), got \(2,\)"),
        ((X, TARGET, WEIGHT.to("meta")), ValueError, "weight must be on cpu as input is, got meta"),
        ((X, TARGET, WEIGHT.clone().requires_grad_()), ValueError, "weight must not require a gradient"),
        ((X, TARGET, None, -100, "max"), ValueError, "reduction must be one of none, mean, sum, got 'max'"),
        ((X, TARGET, None, -100, "mean", -0.1), ValueError, r"label_smoothing must be in \[0, 1\], got -0.1"),
        ((X, TARGET, None, -100, "mean", 1.5), ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(arguments, error, says):
    with pytest.raises(error, match=f"upsample_cross_entropy: {says}|upsample_cross_entropy: .*{says}"):
        upsample_cross_entropy(*arguments)


def shapes_and_labels(count):
    """Images (count, 3, 64, 64) of two rectangles and two discs on a noisy ground, and their classes 0 to 4."""
    row, column = torch.arange(64)[:, None], torch.arange(64)
    labels = torch.zeros(count, 64, 64, dtype=torch.int64)
    for image in labels:
        for k in range(1, 5):
            y, x, (height, width) = *torch.randint(64, (2,)), torch.randint(8, 24, (2,))
            box = ((row - y).abs() < height) & ((column - x).abs() < width)
            image[box if k < 3 else (row - y) ** 2 + (column - x) ** 2 < height**2 / 2] = k
    return torch.randn(5, 3)[labels].movedim(3, 1) + 0.3 * torch.randn(count, 3, 64, 64), labels


def train(loss, images, labels):
    """(losses of every step, final weights) of a small FCN of stride 8, trained on `images` and `labels`."""
    torch.manual_seed(1)
    layers = []
    for width_in, width_out in ((3, 16), (16, 32), (32, 32)):
        layers += [torch.nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 5, 1)).to(images.device)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for x, target in zip(images.split(4), labels.split(4), strict=True):
        value = loss(model(x), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


@each_place(OP, without=[INTERPRETER])
def test_a_network_learns_as_with_pytorch(backend, device):
    """60 steps in float32: the same loss at each as with PyTorch's own ops, and the same bits in a second run."""
    images, labels = (tensor.to(device) for tensor in shapes_and_labels(4 * 60))
    with fastseg.use_backend(backend), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        ours, again = (train(upsample_cross_entropy, images, labels) for _ in range(2))
        theirs, _ = train(
            lambda x, target: F.cross_entropy(F.interpolate(x, target.shape[1:], mode="bilinear"), target),
            images,
            labels,
        )
    assert ours[0] == again[0] and torch.equal(ours[1], again[1])
    assert ours[0] == pytest.approx(theirs, rel=1e-4)
    assert sum(ours[0][-5:]) < 0.6 * sum(ours[0][:5]), "it did not learn"


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_a_second_derivative_is_refused(reduction):
    """It must not count as zero: neither in a penalty on the gradient nor as a forward-mode tangent."""
    x, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (1, 8, 8))
    loss = upsample_cross_entropy(x, target, reduction=reduction).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        (loss + grad.pow(2).sum()).backward()
    with pytest.raises(RuntimeError, match="jvp|forward"):
        torch.func.jvp(lambda x: upsample_cross_entropy(x, target, reduction=reduction), (x.detach(),), (x.detach(),))


@each_place(OP)
def test_an_infinite_weight_of_an_absent_class(backend, device):
    """As inverse frequencies give it."""
    x, target = torch.randn(1, 3, 3, 3), torch.randint(1, 3, (1, 17, 17))
    target[0, :3] = -100
    finite, infinite = (torch.tensor([first, 1.0, 2.0], device=device) for first in (5.0, float("inf")))
    results = []
    for weight in (finite, infinite):
        given = x.to(device).requires_grad_()
        with fastseg.use_backend(backend):
            loss = upsample_cross_entropy(given, target.to(device), weight)
            results.append((loss.detach(), *torch.autograd.grad(loss, given)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
