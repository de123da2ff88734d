"""Computes the cross-entropy of bilinearly upsampled logits, and its gradient  (fastseg/ops/upsample_cross_entropy.py).

First kernel: a program owns BLOCK_CELLS neighbouring cells of one row of cells (a cell: the outputs between the same
four inputs), a thread one column of output pixels in a cell. It walks the classes in blocks: interpolates each along
the column's two input rows once and blends those for each pixel. A first walk finds the largest logit and the sum of
exponentials; a second, for the gradient or label smoothing, takes the exponentials again and adds up what each class
gives to the cell's corners.
Second kernel: a program owns a block of input columns and classes of one row, and adds up the corners of its cells.

Reads each logit about 8 times (DRAM sees it once, L1/L2 the rest) and each target once. The gradient costs 4 float32
numbers per cell and class, written and read once, and its own size. No memory is as large as the upsampled logits.
With the gradient two exponentials per pixel and class and about 25 other instructions bound it, not memory.
Precision: float32 in a fixed order. Pixels to ignore have no say, even with NaN; others spread inf and NaN as PyTorch.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from fastseg.kernels.bilinear import first_span_of, fraction, scale, span, span_count, span_inputs

# A wrong target ends the kernel. Assertions need debug mode, which would also check every integer for overflow.
ASSERTING = {"debug": True, "sanitize_overflow": False}
LEAST = tl.constexpr(-3.4028234663852886e38)  # of float32: where a maximum starts, as -inf - -inf is NaN
LOSS_SUM, WEIGHT_SUM = tl.constexpr(0), tl.constexpr(1)  # what a program leaves in its row of `sums`


def config(cell_height, cell_width):
    """Launch choices from the outputs per cell: 64 columns of up to 8 pixels, whose state must fit in registers."""
    tile_height = min(triton.next_power_of_2(cell_height), 8)
    tile_width = min(max(triton.next_power_of_2(cell_width), 2), 32)  # one warp adds up a cell
    return {
        "TILE_HEIGHT": tile_height,
        "TILE_WIDTH": tile_width,
        "BLOCK_CELLS": 64 // tile_width,
        "BLOCK_CLASSES": min(16 // tile_height, 4),
        "num_warps": 2,
        "maxnreg": 200,  # at 168 the gradient spills
        "enable_fp_fusion": True,
        **ASSERTING,
    }


GATHER_CONFIG = {"BLOCK_COLUMNS": 32, "BLOCK_CLASSES": 32, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def blend(a, b, t):
    """Between a and b. One rounding order everywhere: the target's logit must be the very one among the classes."""
    return tl.fma(t, b, (1.0 - t) * a)


@triton.jit
def exp(x):
    """tl.exp takes three more instructions, to keep results below 1e-38 from becoming 0."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def load_rows(top_ptr, bottom_ptr, left, right, plane, rightness):
    """Logits interpolated along the upper and the lower input row."""
    a = tl.load(top_ptr + plane + left).to(tl.float32)
    b = tl.load(top_ptr + plane + right).to(tl.float32)
    c = tl.load(bottom_ptr + plane + left).to(tl.float32)
    d = tl.load(bottom_ptr + plane + right).to(tl.float32)
    return blend(a, b, rightness), blend(c, d, rightness)


@triton.jit
def load_weight(weight_ptr, k, mask):
    if weight_ptr is None:
        weight = mask.to(tl.float32)
    else:
        weight = tl.load(weight_ptr + k, mask=mask, other=0.0)
    return weight


# Nothing but the strides is specialised, as in upsample_argmax, and of them not that of the classes: if it were known
# to be 1, threads would share the classes out among them, not the columns.
@triton.jit(
    do_not_specialize=[
        "classes", "h", "w", "H", "W", "row_spans", "column_spans", "column_blocks", "ignore_index", "stride_c",
    ]
)  # fmt: skip
def upsample_cross_entropy_kernel(
    input_ptr,  # (N, C, h, w), any strides
    target_ptr,  # (N, H, W), any strides
    weight_ptr,  # (C,) or None for 1s
    grad_loss_ptr,  # (N, H, W), any strides, or None for 1s
    loss_ptr,  # (N, H, W), or None
    sums_ptr,  # (programs, 2), or None for no loss
    corners_ptr,  # (N, row_spans, 4, C, column_spans), or None for no gradient
    classes,
    h,
    w,
    H,
    W,
    row_spans,
    column_spans,
    column_blocks,
    row_scale,
    column_scale,
    ignore_index,
    target_share,  # 1 - e of the formula
    even_share,  # e / C
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    target_stride_n,
    target_stride_h,
    target_stride_w,
    grad_loss_stride_n,
    grad_loss_stride_h,
    grad_loss_stride_w,
    ALIGN_CORNERS: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    # One grid axis (the others end at 65535): column block fastest, then row of cells, then image.
    program = tl.program_id(0)
    column_block = program % column_blocks
    row = program // column_blocks % row_spans
    image = (program // column_blocks // row_spans).to(tl.int64)

    low_y, high_y, begin_y, end_y = span(row, h, H, row_scale, ALIGN_CORNERS)
    top_ptr = input_ptr + image * stride_n + low_y.to(tl.int64) * stride_h
    bottom_ptr = input_ptr + image * stride_n + high_y.to(tl.int64) * stride_h
    target_ptr += image * target_stride_n

    columns: tl.constexpr = BLOCK_CELLS * TILE_WIDTH
    offs_x = tl.arange(0, columns)
    low_x, high_x, begin_x, end_x = span(
        column_block * BLOCK_CELLS + offs_x // TILE_WIDTH, w, W, column_scale, ALIGN_CORNERS
    )
    left = (low_x.to(tl.int64) * stride_w)[None, :]
    right = (high_x.to(tl.int64) * stride_w)[None, :]
    offs_k = tl.arange(0, BLOCK_CLASSES)
    if corners_ptr is not None:
        cell = column_block * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
        side = tl.arange(0, 2)
        corner = (side[:, None] * 2 + side[None, :])[None, None]
        corner_ptr = corners_ptr + ((image * row_spans + row) * 4 + corner) * classes * column_spans
        corner_ptr += cell[None, :, None, None]

    loss_sum = tl.zeros((columns,), tl.float32)
    weight_sum = tl.zeros((columns,), tl.float32)
    # Mostly one tile. One even for a row without outputs: it leaves zeros at the corners.
    for tile_y in range(0, tl.maximum(end_y - begin_y, 1), TILE_HEIGHT):
        y = begin_y + tile_y + tl.arange(0, TILE_HEIGHT)
        downness = fraction(y, low_y, row_scale, ALIGN_CORNERS)[:, None]  # (TILE_HEIGHT, 1)
        for tile_x in range(0, tl.max(end_x - begin_x, axis=0), TILE_WIDTH):
            x = begin_x + tile_x + offs_x % TILE_WIDTH
            rightness = fraction(x, low_x, column_scale, ALIGN_CORNERS)[None, :]  # (1, columns)
            inside = (y < end_y)[:, None] & (x < end_x)[None, :]
            y_wide = y.to(tl.int64)[:, None]
            x_wide = x.to(tl.int64)[None, :]
            target = tl.load(target_ptr + y_wide * target_stride_h + x_wide * target_stride_w, mask=inside, other=0)
            target = target.to(tl.int64)
            counts = inside & (target != ignore_index)
            known = (target >= 0) & (target < classes)
            tl.device_assert(known | (counts == 0), "upsample_cross_entropy: a target is no class, nor ignore_index")
            counts = counts & known
            label = tl.where(counts, target, -1).to(tl.int32)
            if grad_loss_ptr is None:
                upstream = counts.to(tl.float32)
            else:
                pixel = image * grad_loss_stride_n + y_wide * grad_loss_stride_h + x_wide * grad_loss_stride_w
                upstream = tl.load(grad_loss_ptr + pixel, mask=counts, other=0.0).to(tl.float32)

            # First walk: the largest logit, and the sum of exponentials relative to it.
            most = tl.full((TILE_HEIGHT, columns), LEAST, tl.float32)
            total = tl.zeros((TILE_HEIGHT, columns), tl.float32)
            target_z = tl.zeros((TILE_HEIGHT, columns), tl.float32)
            all_weight = 0.0
            if SMOOTH:
                # sum w[k] z[k] is linear in z: it is summed along the two rows, relative to class 0, and then blended.
                zero_upper, zero_lower = load_rows(top_ptr, bottom_ptr, left, right, 0, rightness)
                zero_upper = tl.where(tl.abs(zero_upper) < float("inf"), zero_upper, 0.0)
                zero_lower = tl.where(tl.abs(zero_lower) < float("inf"), zero_lower, 0.0)
                even_upper = tl.zeros((1, columns), tl.float32)
                even_lower = tl.zeros((1, columns), tl.float32)
            for first in range(0, classes, BLOCK_CLASSES):
                k = first + offs_k
                plane = (tl.minimum(k, classes - 1).to(tl.int64) * stride_c)[:, None]
                upper, lower = load_rows(top_ptr, bottom_ptr, left, right, plane, rightness)  # (BLOCK_CLASSES, columns)
                z = blend(upper[:, None, :], lower[:, None, :], downness[None])
                larger = tl.maximum(most, tl.max(z, axis=0))
                once = (k < classes).to(tl.float32)[:, None, None]
                total = total * exp(most - larger) + tl.sum(exp(z - larger[None]) * once, axis=0)
                most = larger
                target_z += tl.sum(tl.where(k[:, None, None] == label[None], z, 0.0), axis=0)
                if SMOOTH:
                    weights = load_weight(weight_ptr, k, k < classes)
                    all_weight += tl.sum(weights, axis=0)
                    even_upper += tl.sum(weights[:, None] * (upper - zero_upper), axis=0)[None, :]
                    even_lower += tl.sum(weights[:, None] * (lower - zero_lower), axis=0)[None, :]
            weight = load_weight(weight_ptr, label, counts)
            weight_sum += tl.sum(weight, axis=0)
            loss = weight * ((most - target_z) + tl.log(total))
            if SMOOTH:
                even = all_weight * ((most - blend(zero_upper, zero_lower, downness)) + tl.log(total))
                loss = target_share * loss + even_share * (even - blend(even_upper, even_lower, downness))
            loss = tl.where(counts, loss, 0.0)
            loss_sum += tl.sum(loss, axis=0)
            if loss_ptr is not None:
                tl.store(loss_ptr + (image * H + y_wide) * W + x_wide, loss, mask=inside)

            # Second walk: the gradient. `hot` is what the target's own class loses, a `factor` times exp all gain.
            if corners_ptr is not None:
                hot = upstream * target_share * weight
                factor = tl.where(counts, (hot + upstream * even_share * all_weight) / total, 0.0)
                if SMOOTH:
                    upstream_upper = even_share * tl.sum((1.0 - downness) * upstream, axis=0)[None, :]
                    upstream_lower = even_share * tl.sum(downness * upstream, axis=0)[None, :]
                for first in range(0, classes, BLOCK_CLASSES):
                    k = first + offs_k
                    plane = (tl.minimum(k, classes - 1).to(tl.int64) * stride_c)[:, None]
                    upper, lower = load_rows(top_ptr, bottom_ptr, left, right, plane, rightness)
                    z = blend(upper[:, None, :], lower[:, None, :], downness[None])
                    grad = tl.where(counts[None], exp(z - most[None]), 0.0) * factor[None]
                    grad -= tl.where(k[:, None, None] == label[None], hot[None], 0.0)
                    grad_upper = tl.sum(grad * (1.0 - downness)[None], axis=1)  # (BLOCK_CLASSES, columns)
                    grad_lower = tl.sum(grad * downness[None], axis=1)
                    if SMOOTH:
                        weights = load_weight(weight_ptr, k, k < classes)[:, None]
                        grad_upper -= weights * upstream_upper
                        grad_lower -= weights * upstream_lower
                    rows = tl.join(grad_upper, grad_lower)[:, :, :, None]
                    shares = rows * tl.join(1.0 - rightness, rightness)[:, :, None, :]  # (.., columns, 2, 2)
                    shares = tl.sum(tl.reshape(shares, (BLOCK_CLASSES, BLOCK_CELLS, TILE_WIDTH, 2, 2)), axis=2)
                    at = corner_ptr + (k.to(tl.int64) * column_spans)[:, None, None, None]
                    mask = (k < classes)[:, None, None, None] & (cell < column_spans)[None, :, None, None]
                    shares += tl.load(at, mask=mask & (tile_y + tile_x > 0), other=0.0)
                    tl.store(at, shares, mask=mask)
                tl.debug_barrier()  # the next tile adds to what other threads stored

    if sums_ptr is not None:
        tl.store(sums_ptr + program.to(tl.int64) * 2 + LOSS_SUM, tl.sum(loss_sum, axis=0))
        tl.store(sums_ptr + program.to(tl.int64) * 2 + WEIGHT_SUM, tl.sum(weight_sum, axis=0))


@triton.jit(
    do_not_specialize=["classes", "h", "w", "H", "W", "row_spans", "column_spans", "column_blocks", "class_blocks"]
)
def upsample_cross_entropy_gather_kernel(
    corners_ptr,  # (N, row_spans, 4, C, column_spans)
    grad_ptr,  # (N, h, w, C)
    classes,
    h,
    w,
    H,
    W,
    row_spans,
    column_spans,
    column_blocks,
    class_blocks,
    row_scale,
    column_scale,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    program = tl.program_id(0)
    column_block = program % column_blocks
    class_block = program // column_blocks % class_blocks
    row = program // column_blocks // class_blocks % h
    image = (program // column_blocks // class_blocks // h).to(tl.int64)

    k = (class_block * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES))[:, None]
    column = (column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    mask = (k < classes) & (column < w)
    first_row = first_span_of(row, h, H, row_scale, ALIGN_CORNERS)
    first_column = first_span_of(column, w, W, column_scale, ALIGN_CORNERS)
    total = tl.zeros((BLOCK_CLASSES, BLOCK_COLUMNS), tl.float32)
    for i in range(3):
        cell_row = first_row + i
        low_y, high_y = span_inputs(cell_row, h, H, row_scale, ALIGN_CORNERS)
        for below in tl.static_range(2):
            if (cell_row >= 0) & (cell_row < row_spans) & ((high_y if below == 1 else low_y) == row):
                plane = ((image * row_spans + cell_row) * 4 + 2 * below) * classes + k
                for j in range(3):
                    cell = first_column + j
                    low_x, high_x = span_inputs(cell, w, W, column_scale, ALIGN_CORNERS)
                    there = mask & (cell >= 0) & (cell < column_spans)
                    for beside in tl.static_range(2):
                        mine = there & ((high_x if beside == 1 else low_x) == column)
                        at = (plane + beside * classes) * column_spans + cell
                        total += tl.load(corners_ptr + at, mask=mine, other=0.0)
    at = ((image * h + row) * w + column) * classes + k
    tl.store(grad_ptr + at, total, mask=mask)


def plan(
    input, target, weight, grad_loss, ignore_index, label_smoothing, align_corners, with_map, with_grad
):  # fmt: skip
    """([(kernel, grid, its arguments, its constants), ...], loss, sums, grad): the launches and what they write.

    Tensors may be on the meta device.
    """
    (n, c, h, w), (H, W) = input.shape, target.shape[1:]
    constants = config(triton.cdiv(H, h), triton.cdiv(W, w)) | {"ALIGN_CORNERS": align_corners}
    row_spans, column_spans = span_count(h, H, align_corners), span_count(w, W, align_corners)
    column_blocks = triton.cdiv(column_spans, constants["BLOCK_CELLS"])
    programs = n * row_spans * column_blocks
    scales = scale(h, H, align_corners), scale(w, W, align_corners)

    new = functools.partial(torch.empty, dtype=torch.float32, device=input.device)
    loss = new((n, H, W)) if with_map else None
    sums = new((programs, 2)) if grad_loss is None else None
    corners = new((n, row_spans, 4, c, column_spans)) if with_grad else None
    arguments = (input, target, weight, grad_loss, loss, sums, corners)
    arguments += (c, h, w, H, W, row_spans, column_spans, column_blocks, *scales)
    arguments += (ignore_index, 1.0 - label_smoothing, label_smoothing / c)
    arguments += (*input.stride(), *target.stride(), *(target if grad_loss is None else grad_loss).stride())
    launches = [(upsample_cross_entropy_kernel, (programs,), arguments, constants | {"SMOOTH": label_smoothing > 0})]
    if not with_grad:
        return launches, loss, sums, new(0)

    grad = new((n, c, h, w), memory_format=torch.channels_last)
    constants = GATHER_CONFIG | {"ALIGN_CORNERS": align_corners}
    blocks = triton.cdiv(w, constants["BLOCK_COLUMNS"]), triton.cdiv(c, constants["BLOCK_CLASSES"])
    arguments = (corners, grad, c, h, w, H, W, row_spans, column_spans, *blocks, *scales)
    launches.append((upsample_cross_entropy_gather_kernel, (n * h * blocks[0] * blocks[1],), arguments, constants))
    return launches, loss, sums, grad


def run(input, target, *args):
    if not target.is_cuda:
        check_target(target, input.shape[1], *args[2:3])
    launches, *results = plan(input, target, *args)
    if target.numel() > 0:
        with torch.cuda.device_of(input):
            for kernel, grid, arguments, constants in launches:
                kernel[grid](*arguments, **constants)
    return results


def check_target(target, classes, ignore_index):
    """What the kernel asserts on a GPU: the interpreter on a CPU leaves assertions out."""
    wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if wrong.numel() > 0:
        wanted = f"a class from 0 to {classes - 1} or ignore_index ({ignore_index})"
        raise RuntimeError(f"upsample_cross_entropy: target must be {wanted}, got {wrong[0].item()}")


def upsample_cross_entropy(
    input, target, weight, ignore_index, label_smoothing, align_corners, reduce, with_grad
):  # fmt: skip
    loss, sums, grad = run(
        input, target, weight, None, ignore_index, label_smoothing, align_corners, not reduce, with_grad
    )
    loss_sum, weight_sum = sums.sum(0).unbind()
    return loss_sum.clone() if reduce else loss, weight_sum.clone(), grad


def upsample_cross_entropy_backward(grad, input, target, weight, ignore_index, label_smoothing, align_corners):
    *_, grad_input = run(input, target, weight, grad, ignore_index, label_smoothing, align_corners, False, True)
    return grad_input


def launches():
    """(what, *launch) of every tile that config() can choose, dtype, layout and use, for the compile gates."""

    def case(cell, dtype=torch.float32, target=torch.int64, layout=torch.channels_last, **how):
        what = f"cells {cell[0]}x{cell[1]} {dtype} {target} {how}"
        input = torch.empty((2, 21, 8, 8), dtype=dtype, device="meta", memory_format=layout)
        target = torch.empty((2, 8 * cell[0], 8 * cell[1]), dtype=target, device="meta")
        weight = torch.empty(21, device="meta") if how.get("weight", True) else None
        upstream = torch.empty(target.shape, device="meta") if how.get("backward") else None
        smoothing, align_corners = how.get("label_smoothing", 0.1), how.get("align_corners", False)
        outputs = how.get("with_map", False), how.get("with_grad", True)
        for launch in plan(input, target, weight, upstream, 255, smoothing, align_corners, *outputs)[0]:
            yield what, *launch

    for cell in itertools.product((1, 2, 4, 8), (2, 4, 8, 16, 32)):
        yield from case(cell)
    for dtype, target in ((torch.float16, torch.int32), (torch.bfloat16, torch.uint8)):
        yield from case((8, 8), dtype, target, torch.contiguous_format, align_corners=True)
    yield from case((8, 8), weight=False, label_smoothing=0.0)
    yield from case((8, 8), backward=True)
    yield from case((8, 8), with_grad=False, with_map=True)
    yield from case((8, 8), with_grad=False, weight=False, label_smoothing=0.0)
