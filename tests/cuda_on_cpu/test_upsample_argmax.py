"""upsample_argmax's CUDA kernel, on the CPU."""

import pytest
import torch
from test_upsample_argmax import CASES, EXACT, HALF, assert_best_class, interpolate

import cuda_on_cpu

kernel = cuda_on_cpu.Kernel("upsample_argmax")


def upsample_argmax(x, size, schedule, align_corners=False, dtype=torch.uint8, most_blocks=65535):
    labels = torch.empty(x.shape[0], *size, dtype=dtype)
    kernel("upsample_argmax", x.permute(0, 2, 3, 1).contiguous(), labels, align_corners, most_blocks, schedule=schedule)
    return labels


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("align_corners", (False, True), ids=("half_pixel", "align_corners"))
@pytest.mark.parametrize("case", CASES)
def test_best_class(case, align_corners, schedule):
    shape, size = CASES[case]
    x = torch.randn(shape)
    assert_best_class(upsample_argmax(x, size, schedule, align_corners), x, size, align_corners)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("labels", (torch.uint8, torch.int32, torch.int64), ids=str)
def test_types(dtype, labels, schedule):
    x = torch.randn(1, 5, 4, 3).to(dtype)
    assert_best_class(upsample_argmax(x, (13, 11), schedule, dtype=labels), x, (13, 11), False)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")), ids=str)
@pytest.mark.parametrize("dtype, case", [(torch.float32, case) for case in EXACT] + [(h, "up") for h in HALF[1:]])
def test_nan_and_inf_as_argmax(dtype, case, value, schedule):
    align_corners, size = EXACT[case]
    x = torch.randperm(6 * 4 * 5).view(1, 6, 4, 5).to(dtype)
    x[0, 3, 1, 2] = x[0, 1, 1, 3] = x[0, 5, 3, 4] = value
    expected = interpolate(x.float(), size, align_corners).argmax(1)
    assert torch.equal(upsample_argmax(x, size, schedule, align_corners).long(), expected)


@cuda_on_cpu.each_schedule
@pytest.mark.parametrize("most_blocks", (1, 2))
def test_more_rows_and_images_than_blocks(most_blocks, schedule):
    """A warp then labels one cell after another in the same shared memory. The survivors differ from cell to cell."""
    x = torch.randn(3, 70, 4, 3)
    assert_best_class(upsample_argmax(x, (11, 9), schedule, most_blocks=most_blocks), x, (11, 9), False)
