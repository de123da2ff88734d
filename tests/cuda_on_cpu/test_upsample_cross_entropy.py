"""upsample_cross_entropy's CUDA kernels, on the CPU."""

import pytest
import torch
from check import assert_accurate, special, value_and_grad
from test_upsample_cross_entropy import CASES, CLASS_WEIGHTS, EXACT, TARGET_DTYPES, functions, logits_and_target

import cuda_on_cpu

kernel = cuda_on_cpu.Kernel("upsample_cross_entropy")
NONE = torch.empty(0)
ROUNDINGS = 16  # between a logit and the gradient, as in the op's own test


def cross_entropy(
    x,
    target,
    schedule,
    weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    align_corners=False,
    upstream=None,
    reduce=False,
    with_grad=True,
    most_blocks=65535,
):
    """(loss, total_weight, grad) as the op returns them; with `upstream`, the gradient alone."""
    given, sizes = x.permute(0, 2, 3, 1).contiguous(), torch.zeros(2, dtype=torch.int64)
    kernel("sizes", given, target, align_corners, most_blocks, sizes, schedule=schedule)
    warps, floats = sizes.tolist()
    nan = float("nan")
    weight = NONE if weight is None else weight.float().contiguous()
    loss = torch.full((warps,) if reduce else target.shape, nan) if upstream is None else NONE
    weight_sums = torch.full((warps,), nan) if upstream is None else NONE
    sums, grad = (torch.full((floats,), nan), torch.full(given.shape, nan)) if with_grad else (NONE, NONE)
    outputs = (NONE, loss) if reduce else (loss, NONE)
    arrays = given, target, weight, NONE if upstream is None else upstream, *outputs, weight_sums, sums, grad
    kernel(
        "upsample_cross_entropy",
        *arrays,
        ignore_index,
        float(label_smoothing),
        align_corners,
        most_blocks,
        schedule=schedule,
    )
    return loss.sum() if reduce else loss, weight_sums.sum(), grad.permute(0, 3, 1, 2) if with_grad else grad


def compare(x, target, schedule, most_blocks=65535, **how):
    """The sum with its gradient in one pass, and the map with its gradient for some upstream in another."""
    upstream = torch.randn(target.shape)
    for reduction, coming in (("sum", torch.ones(())), ("none", upstream)):
        _, theirs = functions(target, reduction=reduction, **how)
        known = [value_and_grad(theirs, x.to(dtype), coming) for dtype in (torch.float64, torch.float32)]
        (true_value, true_grad), (value, grad) = known
        if reduction == "sum":
            ours, total_weight, our_grad = cross_entropy(
                x, target, schedule, reduce=True, most_blocks=most_blocks, **how
            )
        else:
            ours, total_weight, empty = cross_entropy(
                x, target, schedule, with_grad=False, most_blocks=most_blocks, **how
            )
            assert empty.numel() == 0
            our_grad = cross_entropy(x, target, schedule, upstream=upstream, most_blocks=most_blocks, **how)[2]
        assert_accurate("loss", ours, true_value, value, value, ROUNDINGS)
        assert_accurate("gradient", our_grad, true_grad, grad, grad, ROUNDINGS)
    weight = torch.ones(x.shape[1]) if how.get("weight") is None else how["weight"].float()
    valid = target.long() != how.get("ignore_index", -100)
    torch.testing.assert_close(total_weight, weight[target[valid].long()].sum())


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("align_corners", (False, True), ids=("half_pixel", "align_corners"))
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, align_corners, schedule):
    x, target = logits_and_target(*CASES[case])
    compare(x, target, schedule, align_corners=align_corners)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (24, 25, 64, 65, 161, 193, 400))
def test_teams(classes, schedule):
    """The most and fewest classes of each team, and more than any holds at a time."""
    x, target = logits_and_target((1, classes, 2, 2), (5, 6))
    compare(x, target, schedule, weight=torch.rand(classes), label_smoothing=0.1)


OPTIONS = {
    "weight": {"weight": CLASS_WEIGHTS},
    "ignore a class": {"ignore_index": 2},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing and weight": {"label_smoothing": 0.3, "weight": CLASS_WEIGHTS, "ignore_index": 255},
    "only smoothing": {"label_smoothing": 1.0},
}


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, schedule):
    how = OPTIONS[option]
    x, target = logits_and_target((2, 5, 3, 4), (10, 9), how.get("ignore_index", -100))
    compare(x, target, schedule, **how)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES, ids=str)
def test_types(dtype, target_dtype, schedule):
    """And ignore_index -100 is not the uint8 156, which is a class here."""
    x, target = logits_and_target((2, 160, 2, 3), (7, 8), ignored=156)
    compare(x.to(dtype).float(), target.to(target_dtype), schedule)
    wide = cross_entropy(x.to(dtype).float(), target, schedule)
    narrow = cross_entropy(x.to(dtype), target.to(target_dtype), schedule)
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (3, 200))
@pytest.mark.parametrize("most_blocks", (1, 2))
def test_more_rows_and_images_than_blocks(most_blocks, classes, schedule):
    """A team then takes one cell after another in the same shared memory."""
    x, target = logits_and_target((3, classes, 4, 3), (18, 17))
    compare(x, target, schedule, most_blocks)


@cuda_on_cpu.each_schedule
def test_whole_cells_ignored(schedule):
    x, target = logits_and_target((2, 4, 3, 5), (24, 40))
    target[0] = target[1, :, 11:] = target[1, 13:] = -100
    compare(x, target, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (5, 200))
def test_big_logits(classes, schedule):
    _, target = logits_and_target((1, classes, 3, 4), (24, 32))
    compare(torch.randint(-156, 157, (1, classes, 3, 4)) * 64.0, target, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (4, 200))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")), ids=str)
def test_ignored_pixels_have_no_say(value, classes, schedule):
    x, target = logits_and_target((1, classes, 3, 4), (24, 32))
    target[0, :12, :12] = -100  # all that reads the first logits
    expected = cross_entropy(x, target, schedule)
    x[0, 1:3, 0, 0] = value
    assert all(torch.equal(a, b) for a, b in zip(cross_entropy(x, target, schedule), expected, strict=True))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (3, 200))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")), ids=str)
@pytest.mark.parametrize("case", EXACT)
def test_nan_and_inf(case, value, classes, schedule):
    align_corners, size = EXACT[case]
    x, target = torch.randn(2, classes, 4, 5), torch.randint(3, (2, *size))
    x[0, 0, 1, 1] = x[1, 1, 3, 4] = value
    x[1, :, 0, 0] = -float("inf")  # no class left: nan
    for smoothing in (0.0, 0.1):
        how = {"align_corners": align_corners, "label_smoothing": smoothing}
        _, theirs = functions(target, reduction="none", **how)
        wanted = value_and_grad(theirs, x, torch.ones(target.shape))
        loss, _, grad = cross_entropy(x, target, schedule, **how)
        assert torch.equal(special(loss), special(wanted[0])) and torch.equal(special(grad), special(wanted[1]))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "dtype, wrong", [(torch.int64, 5), (torch.int64, -1), (torch.int64, 2**32 + 1), (torch.int32, -7), (torch.uint8, 5)]
)
def test_target_out_of_range(dtype, wrong, schedule):
    x, target = logits_and_target((2, 5, 3, 3), (9, 8), ignored=255)
    target[1, 8, 7] = wrong
    with pytest.raises(cuda_on_cpu.KernelError, match="assertion failed: .*target"):
        cross_entropy(x, target.to(dtype), schedule, ignore_index=255)
