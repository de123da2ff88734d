"""upsample_argmax against the float64 interpolation, on every backend."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check import check, each_place, layouts, places
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import fastseg
from fastseg.ops import upsample_argmax

OP = "upsample_argmax"
HALF = (torch.float32, torch.float16, torch.bfloat16)

# name: (N, C, h, w), (H, W); small enough for the interpreter, one reason each
CASES = {
    "x8": ((1, 21, 5, 6), (40, 48)),  # the networks' usual factor: whole cells
    "x8 less one": ((1, 5, 5, 5), (33, 33)),  # 513 from 65: cells of 7 and 8 outputs
    "x32": ((1, 3, 2, 2), (64, 70)),  # FCN-32s: a cell is more than one tile
    "x1.5": ((2, 4, 6, 5), (9, 7)),  # cells of one and two outputs
    "same size": ((1, 4, 5, 7), (5, 7)),
    "down": ((1, 5, 9, 8), (4, 3)),  # some inputs are read by nobody
    "up and down": ((1, 3, 4, 9), (11, 4)),
    "one pixel": ((1, 7, 1, 1), (5, 6)),  # a single cell, its own neighbour
    "one row": ((1, 3, 1, 9), (7, 20)),
    "to one pixel": ((1, 3, 6, 6), (1, 1)),  # scale 0 with align_corners
    "one class": ((1, 1, 3, 3), (6, 6)),
    "33 classes": ((1, 33, 3, 3), (6, 7)),  # one more than a word of survivor bits
    "wide": ((1, 2, 2, 70), (3, 150)),  # more cells than one program or block takes
}


def interpolate(x, size, align_corners):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def assert_best_class(labels, x, size, align_corners):
    """The float64 value of the chosen class is the best to within what PyTorch's own float32 values are off by.

    Two values are compared and each may be off, hence twice; 1.5 is the margin that every op gets.
    """
    truth = interpolate(x.double(), size, align_corners)
    error = (interpolate(x.float(), size, align_corners) - truth).abs().max()
    chosen = truth.gather(1, labels.long()[:, None])[:, 0]
    shortfall = (truth.amax(1) - chosen).max()
    assert shortfall <= 2 * 1.5 * error, f"a label is {shortfall:.3g} short of the best; rounding explains {error:.3g}"


@each_place(OP)
@pytest.mark.parametrize("align_corners", (False, True), ids=("half_pixel", "align_corners"))
@pytest.mark.parametrize("case", CASES)
def test_best_class(case, align_corners, backend, device):
    shape, size = CASES[case]
    x = torch.randn(shape)
    check(
        lambda given: upsample_argmax(given, size, align_corners),
        x,
        backend,
        device,
        lambda labels: assert_best_class(labels, x, size, align_corners),
    )


@each_place(OP)
@pytest.mark.parametrize("dtype", HALF[1:])
def test_half_precision(dtype, backend, device):
    shape, size = CASES["x8 less one"]
    x = torch.randn(shape).to(dtype)
    check(
        lambda given: upsample_argmax(given, size),
        x,
        backend,
        device,
        lambda y: assert_best_class(y, x, size, False),
    )


@each_place(OP)
@pytest.mark.parametrize("dtype", HALF[1:])
@pytest.mark.parametrize("step", (1.0, 2.0**-24), ids=("whole", "subnormal in float16"))
def test_half_precision_special_values(step, dtype, backend, device):
    """Every kind of number converts exactly: subnormals are ordered, inf is infinite, NaN is NaN."""
    x = (torch.stack([torch.randperm(6 * 4 * 5) for _ in range(3)]).view(3, 6, 4, 5) * step).to(dtype)
    x[:, 3, 1, 2], x[:, 1, 2, 4], x[:, 5, 3, 0] = float("inf"), -float("inf"), float("nan")
    with fastseg.use_backend(backend):
        labels = upsample_argmax(x.to(device), (16, 20))
    assert torch.equal(labels.cpu().long(), interpolate(x.float(), (16, 20), False).argmax(1))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend, device", [p for p in places(OP) if p != ("triton", "cpu")])
def test_real_shapes(dtype, backend, device):
    """The networks' own sizes, smooth logits: most classes are pruned and cells of every kind occur."""
    for shape, size in (((1, 21, 65, 65), (513, 513)), ((2, 150, 30, 31), (237, 241))):
        low = torch.randn(shape[0], shape[1], 11, 12)
        x = F.interpolate(low, shape[2:], mode="bicubic").add_(0.3 * torch.randn(shape)).to(dtype)
        for layout in (x, x.contiguous(memory_format=torch.channels_last)):
            with fastseg.use_backend(backend):
                labels = upsample_argmax(layout.to(device), size)
            assert_best_class(labels.cpu(), x, size, False)


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
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")), ids=str)
@pytest.mark.parametrize("case", EXACT)
def test_nan_and_inf_as_argmax(case, value, backend, device):
    """Equal to F.interpolate on the CPU followed by argmax, label for label."""
    align_corners, size = EXACT[case]
    x = torch.randperm(6 * 4 * 5).view(1, 6, 4, 5).float()
    x[0, 3, 1, 2] = x[0, 1, 1, 3] = x[0, 5, 3, 4] = value
    expected = interpolate(x, size, align_corners).argmax(1)
    with fastseg.use_backend(backend):
        labels = upsample_argmax(x.to(device), size, align_corners)
    assert torch.equal(labels.cpu().long(), expected)


@each_place(OP)
def test_a_masked_class_and_all_masked(backend, device):
    """-inf is how people forbid a class; all forbidden is class 0, as in argmax."""
    x = torch.randperm(4 * 3 * 3).view(1, 4, 3, 3).float()
    x[:, 2] = -float("inf")
    for given in (x, torch.full_like(x, -float("inf"))):
        for size in ((6, 12), (3, 3)):
            expected = interpolate(given, size, False).argmax(1)
            with fastseg.use_backend(backend):
                assert torch.equal(upsample_argmax(given.to(device), size).cpu().long(), expected)


@each_place(OP)
def test_ties_go_to_the_lowest_class(backend, device):
    x = torch.full((1, 40, 3, 3), 2.5)
    x[:, :4] = 1.0
    with fastseg.use_backend(backend):
        assert (upsample_argmax(x.to(device), (9, 11)) == 4).all()


@each_place(OP)
def test_big_magnitudes(backend, device):
    """Corner sums overflow float32, interpolated values do not."""
    x = torch.randn(1, 4, 3, 4) * 1e38
    with fastseg.use_backend(backend):
        assert_best_class(upsample_argmax(x.to(device), (9, 11)).cpu(), x, (9, 11), False)


@each_place(OP)
def test_label_dtypes_and_empty_batch(backend, device):
    x = torch.randn(1, 257, 1, 2, device=device)
    with fastseg.use_backend(backend):
        assert upsample_argmax(x[:, :256], (1, 3)).dtype == torch.uint8
        narrow, wide = upsample_argmax(x, (1, 3)), upsample_argmax(x, (1, 3), dtype=torch.int64)
        assert (narrow.dtype, wide.dtype) == (torch.int32, torch.int64)
        assert torch.equal(narrow.long(), wide)
        assert upsample_argmax(x[:0], (3, 4)).shape == (0, 3, 4)


@each_place(OP)
def test_expanded_input(backend, device):
    x = torch.randn(1, 4, 3, 3, device=device)
    with fastseg.use_backend(backend):
        assert torch.equal(upsample_argmax(x.expand(3, -1, -1, -1), 7)[2], upsample_argmax(x, 7)[0])


@pytest.mark.parametrize("backend, device", [p for p in places(OP) if p in (("native", "cpu"), ("triton", "cuda"))])
def test_offsets_past_2_to_31(backend, device):
    """The last rows lie more than 2^31 elements in. numpy's zeros are not really allocated until they are touched."""
    x = torch.from_numpy(np.zeros((1, 2, 32768, 32769), np.float16)).to(device)
    x[0, 1, -1] = 1
    with fastseg.use_backend(backend):
        assert upsample_argmax(x, (2, 2), align_corners=True).tolist() == [[[0, 0], [1, 1]]]


def test_threads_share_the_work():
    """Several chunks of rows and images, whatever the number of cores: the same bits as one thread."""
    x, before = torch.randn(5, 4, 9, 40), torch.get_num_threads()
    try:
        labels = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            labels.append(upsample_argmax(x, (130, 300)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(labels[0], labels[1]) and torch.equal(labels[0], labels[2])
    assert_best_class(labels[1], x, (130, 300), False)


@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 70, 12, 40))),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    layout=st.sampled_from(sorted(layouts(torch.zeros(1, 1, 1, 1)))),
)
def test_random_shapes(shape, size, align_corners, layout):
    x = torch.randn(shape)
    assert_best_class(upsample_argmax(layouts(x)[layout], size, align_corners), x, size, align_corners)


def test_float64_runs_the_reference():
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(upsample_argmax(x, 9).long(), interpolate(x, (9, 9), False).argmax(1))


def test_opcheck_and_compile():
    x = torch.randn(2, 5, 4, 6)
    for given in layouts(x).values():
        torch.library.opcheck(torch.ops.fastseg.upsample_argmax.default, (given, [9, 12], False, torch.uint8))
    compiled = torch.compile(lambda x: upsample_argmax(x * 2, (9, 12)).int() + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), upsample_argmax(x * 2, (9, 12)).int() + 1)
    compiled(torch.randn(3, 5, 7, 8))  # a second shape makes the sizes symbolic

    class Labels(torch.nn.Module):
        def forward(self, x):
            return upsample_argmax(x, (9, 12))

    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Labels(), (x,), dynamic_shapes={"x": {0: batch}}).module()
    more = torch.randn(5, 5, 4, 6)
    assert torch.equal(exported(more), upsample_argmax(more, (9, 12)))


def test_autocast_and_inference_mode():
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        labels = upsample_argmax(x, 6)
    with torch.inference_mode():
        assert torch.equal(labels, upsample_argmax(x, 6))
    assert not labels.requires_grad


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (([[1.0]], 3), TypeError, "input must be a floating-point tensor, got list"),
        ((torch.ones(1, 2, 3, 3, dtype=torch.int32), 3), TypeError, "got torch.int32"),
        ((torch.ones(2, 3, 3), 3), ValueError, r"\(N, C, h, w\).*got \(2, 3, 3\)"),
        ((torch.ones(1, 0, 3, 3), 3), ValueError, "C, h, w >= 1"),
        (
            (torch.ones(1, 2, 3, 3), (3, 0)),
            ValueError,
            r"size must be an int or two, \(H, W\), from 1 on, got \(3, 0\)",
        ),
        ((torch.ones(1, 2, 3, 3), (3, 3, 3)), ValueError, "size must be an int or two"),
        ((torch.ones(1, 2, 3, 3), 2.5), ValueError, "size must be .* got 2.5"),
        ((torch.ones(1, 2, 3, 3), 3, False, torch.float32), TypeError, "dtype must be torch.uint8"),
        ((torch.ones(1, 300, 3, 3), 3, False, torch.uint8), ValueError, "cannot name 300 classes"),
    ],
)
def test_wrong_arguments(arguments, error, says):
    with pytest.raises(error, match=f"upsample_argmax: .*{says}|upsample_argmax: {says}"):
        upsample_argmax(*arguments)
