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
    upstream=NONE,
    reduction="none",
    with_grad=True,
    most_blocks=65535,
):
    """(loss, total_weight, grad) as the op returns them; with `upstream`, the gradient alone."""
    nan, given = float("nan"), x.permute(0, 2, 3, 1).contiguous()
    weight = NONE if weight is None else weight.float().contiguous()
    shape = (0,) if upstream.numel() else (1,) if reduction == "sum" else target.shape
    loss, total_weight = torch.full(shape, nan), torch.full((1,), nan)
    grad = torch.full(given.shape, nan) if with_grad else NONE
    arrays = given, target, weight, upstream, loss, total_weight, grad
    how = ignore_index, float(label_smoothing), align_corners, reduction == "sum", most_blocks
    kernel("upsample_cross_entropy", *arrays, *how, schedule=schedule)
    return loss[0] if reduction == "sum" else loss, total_weight, grad.permute(0, 3, 1, 2) if with_grad else grad


def compare(x, target, schedule, reduction="none", most_blocks=65535, **how):
    """The sum takes its gradient in one pass; the map has none, and its gradient for some upstream is another."""
    _, theirs = functions(target, reduction=reduction, **how)
    upstream = torch.randn(target.shape) if reduction == "none" else torch.ones(())
    known = [value_and_grad(theirs, x.to(dtype), upstream) for dtype in (torch.float64, torch.float32)]
    (true_loss, true_grad), (usual_loss, usual_grad) = known
    how["most_blocks"] = most_blocks
    if reduction == "sum":
        loss, total_weight, grad = cross_entropy(x, target, schedule, reduction=reduction, **how)
    else:
        loss, total_weight, _ = cross_entropy(x, target, schedule, with_grad=False, **how)
        _, _, grad = cross_entropy(x, target, schedule, upstream=upstream, **how)
    assert_accurate("loss", loss, true_loss, usual_loss, usual_loss, ROUNDINGS)
    assert_accurate("gradient", grad, true_grad, usual_grad, usual_grad, ROUNDINGS)
    weight = torch.ones(x.shape[1]) if how.get("weight") is None else how["weight"].float()
    valid = target.long() != how.get("ignore_index", -100)
    torch.testing.assert_close(total_weight[0], weight[target[valid].long()].sum())


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize(
    "align_corners, reduction", ((False, "sum"), (True, "none")), ids=("half_pixel-sum", "align_corners-none")
)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, align_corners, reduction, schedule):
    x, target = logits_and_target(*CASES[case])
    compare(x, target, schedule, reduction, align_corners=align_corners)


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
    assert all(map(torch.equal, wide, narrow))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("shape, size", (((3, 3, 4, 3), (18, 17)), ((2, 200, 2, 2), (7, 9))))
@pytest.mark.parametrize("most_blocks", (1, 2))
def test_more_rows_and_images_than_blocks(most_blocks, shape, size, schedule):
    """A team then takes one cell after another in the same shared memory."""
    x, target = logits_and_target(shape, size)
    compare(x, target, schedule, most_blocks=most_blocks)


@cuda_on_cpu.each_schedule
def test_whole_cells_ignored(schedule):
    x, target = logits_and_target((2, 4, 3, 5), (24, 40))
    target[0] = target[1, :, 11:] = target[1, 13:] = -100
    compare(x, target, schedule)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (5, 200))
def test_big_logits(classes, schedule):
    """Exact in float32, so the errors are those of small logits."""
    _, target = logits_and_target((1, classes, 2, 2), (16, 16))
    compare(torch.randint(-156, 157, (1, classes, 2, 2)) * 64.0, target, schedule)


SPECIAL = [float("nan"), float("inf"), -float("inf")]


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("classes", (4, 200))
def test_ignored_pixels_have_no_say(classes, schedule):
    x, target = logits_and_target((3, classes, 2, 2), (8, 8))
    target[:, :6, :6] = -100  # all that reads the first logits
    expected = cross_entropy(x, target, schedule)
    x[:, 1, 0, 0] = torch.tensor(SPECIAL)
    assert all(map(torch.equal, cross_entropy(x, target, schedule), expected))


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
@pytest.mark.parametrize("case, classes", [(case, 3) for case in EXACT] + [("down", 200), ("same size", 200)])
def test_nan_and_inf(case, classes, label_smoothing, schedule):
    align_corners, size = EXACT[case]
    x, target = torch.randn(4, classes, 4, 5), torch.randint(3, (4, *size))
    x[:3, 0, 1, 1] = x[:3, 1, 3, 4] = torch.tensor(SPECIAL)
    x[3, :, 0, 0] = -float("inf")  # no class is left
    how = {"align_corners": align_corners, "label_smoothing": label_smoothing}
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
