"""Computes  labels = argmax over classes of the bilinearly upsampled input  (fastseg/ops/upsample_argmax.py).

A program owns BLOCK_CELLS neighbouring cells of one row of cells (a cell: the outputs between the same four inputs).
It finds, per cell, the value that some class reaches everywhere, then walks the classes in blocks and interpolates only
those that may win in one of its cells.
Reads each logit about 8 times (DRAM sees it once, L1/L2 the rest), in any layout; writes each label once.
Precision: float32. Cells with an inf or NaN corner keep every class, so they follow F.interpolate exactly.
"""

import itertools

import torch
import triton
import triton.language as tl

from fastseg.kernels.bilinear import fraction, scale, span, span_count

BLOCK_CLASSES = 16  # one bit each in the scalar that says which classes of a block to interpolate


def config(cell_height, cell_width):
    """Launch choices from the outputs per cell: tile sides, and cells for about 512 pixels at work, 4 a thread."""
    tile_height = min(triton.next_power_of_2(cell_height), 16)
    tile_width = min(triton.next_power_of_2(cell_width), 16)
    most_cells = min(32, 128 // tile_width)  # more cells spill when pruned, more pixel columns when interpolated
    return {
        "TILE_HEIGHT": tile_height,
        "TILE_WIDTH": tile_width,
        "BLOCK_CELLS": min(max(4, 512 // (tile_height * tile_width)), most_cells),
        "num_warps": 4,
        "maxnreg": 128,  # left alone, ptxas aims at 64 to 96 for some tiles and spills a little
        "enable_fp_fusion": True,
    }


@triton.jit
def load_corners(top_ptr, bottom_ptr, left, right, mask):
    return (
        tl.load(top_ptr + left, mask=mask, other=0.0).to(tl.float32),
        tl.load(top_ptr + right, mask=mask, other=0.0).to(tl.float32),
        tl.load(bottom_ptr + left, mask=mask, other=0.0).to(tl.float32),
        tl.load(bottom_ptr + right, mask=mask, other=0.0).to(tl.float32),
    )


@triton.jit
def interpolate(top_ptr, bottom_ptr, left, right, mask, rightness, lower):
    """One class at a tile of pixels: (rows, 1) weights by (1, columns) corners."""
    a, b, c, d = load_corners(top_ptr, bottom_ptr, left, right, mask)
    upper = 1.0 - lower
    return (1.0 - rightness) * (upper * a[None, :] + lower * c[None, :]) + rightness * (
        upper * b[None, :] + lower * d[None, :]
    )


# Sizes are not specialised: a size of 1 would become a constant without a dtype, and each new size would recompile.
@triton.jit(do_not_specialize=["classes", "h", "w", "H", "W", "row_spans", "column_blocks"])
def upsample_argmax_kernel(
    input_ptr,  # (N, C, h, w), any strides
    labels_ptr,  # (N, H, W), dense
    classes,
    h,
    w,
    H,
    W,
    row_spans,
    column_blocks,
    row_scale,
    column_scale,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    ALIGN_CORNERS: tl.constexpr,
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

    # Prune. Per cell, the value that some class is sure to reach; -inf where a corner is not finite.
    cells = column_block * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    low_x, high_x, begin_x, end_x = span(cells, w, W, column_scale, ALIGN_CORNERS)
    used = begin_x < end_x
    left = (low_x.to(tl.int64) * stride_w)[:, None]  # (BLOCK_CELLS, 1)
    right = (high_x.to(tl.int64) * stride_w)[:, None]
    offs_k = tl.arange(0, BLOCK_CLASSES)
    guaranteed = tl.full((BLOCK_CELLS,), float("-inf"), tl.float32)
    finite = tl.full((BLOCK_CELLS,), 1, tl.int32)
    for first in range(0, classes, BLOCK_CLASSES):
        k = (first + offs_k).to(tl.int64)[None, :] * stride_c
        mask = ((first + offs_k) < classes)[None, :] & used[:, None]
        a, b, c, d = load_corners(top_ptr, bottom_ptr, left + k, right + k, mask)
        least = tl.minimum(tl.minimum(a, b), tl.minimum(c, d))  # (BLOCK_CELLS, BLOCK_CLASSES)
        guaranteed = tl.maximum(guaranteed, tl.max(tl.where(mask, least, float("-inf")), axis=1))
        finite = tl.minimum(finite, tl.min(((a + b + c + d) * 0.0 == 0.0).to(tl.int32), axis=1))
    guaranteed = tl.where(finite == 1, guaranteed, float("-inf"))

    # The same cells again with a column for each of their pixels, one tile at a time (mostly there is one).
    offs_x = tl.arange(0, BLOCK_CELLS * TILE_WIDTH)
    pixel_low, pixel_high, pixel_begin, pixel_end = span(
        column_block * BLOCK_CELLS + offs_x // TILE_WIDTH, w, W, column_scale, ALIGN_CORNERS
    )
    pixel_left = pixel_low.to(tl.int64) * stride_w
    pixel_right = pixel_high.to(tl.int64) * stride_w
    widest = tl.max(end_x - begin_x, axis=0)
    for tile_y in range(begin_y, end_y, TILE_HEIGHT):
        y = tile_y + tl.arange(0, TILE_HEIGHT)
        lower = fraction(y, low_y, row_scale, ALIGN_CORNERS)[:, None]  # (TILE_HEIGHT, 1)
        for tile_x in range(0, widest, TILE_WIDTH):
            x = pixel_begin + tile_x + offs_x % TILE_WIDTH
            inside = x < pixel_end
            rightness = fraction(x, pixel_low, column_scale, ALIGN_CORNERS)[None, :]
            best = tl.full((TILE_HEIGHT, BLOCK_CELLS * TILE_WIDTH), float("-inf"), tl.float32)
            label = tl.zeros((TILE_HEIGHT, BLOCK_CELLS * TILE_WIDTH), tl.int32)
            for first in range(0, classes, BLOCK_CLASSES):
                k = (first + offs_k).to(tl.int64)[None, :] * stride_c
                mask = ((first + offs_k) < classes)[None, :] & used[:, None]
                a, b, c, d = load_corners(top_ptr, bottom_ptr, left + k, right + k, mask)
                most = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
                hopeless = (most < guaranteed[:, None]) | (mask == 0)  # `<`: NaN has hope
                hopeful = tl.max((hopeless == 0).to(tl.int32), axis=0)  # (BLOCK_CLASSES,)
                bits = tl.sum(hopeful << offs_k, axis=0)
                for i in range(BLOCK_CLASSES):
                    if (bits >> i) & 1:
                        plane = tl.full((), first + i, tl.int64) * stride_c
                        value = interpolate(
                            top_ptr + plane,
                            bottom_ptr + plane,
                            pixel_left,
                            pixel_right,
                            inside,
                            rightness,
                            lower,
                        )
                        # As argmax: the first of equals wins, and so does the first NaN.
                        better = ((value <= best) == 0) & (best == best)
                        best = tl.where(better, value, best)
                        label = tl.where(better, first + i, label)
            out = (image * H + y.to(tl.int64))[:, None] * W + x.to(tl.int64)[None, :]
            tl.store(
                labels_ptr + out,
                label.to(labels_ptr.dtype.element_ty),
                mask=(y < end_y)[:, None] & inside[None, :],
            )


def plan(input, labels, align_corners):
    """(kernel, grid, its arguments, its constants) of the one launch; tensors may be on the meta device."""
    (n, c, h, w), (_, H, W) = input.shape, labels.shape
    constants = config(triton.cdiv(H, h), triton.cdiv(W, w))
    row_spans = span_count(h, H, align_corners)
    column_blocks = triton.cdiv(span_count(w, W, align_corners), constants["BLOCK_CELLS"])
    scales = scale(h, H, align_corners), scale(w, W, align_corners)
    arguments = (input, labels, c, h, w, H, W, row_spans, column_blocks, *scales, *input.stride())
    constants |= {"ALIGN_CORNERS": align_corners, "BLOCK_CLASSES": BLOCK_CLASSES}
    return upsample_argmax_kernel, (n * row_spans * column_blocks,), arguments, constants


def upsample_argmax(input, size, align_corners, dtype):
    labels = torch.empty((input.shape[0], *size), dtype=dtype, device=input.device)
    if labels.numel() > 0:
        kernel, grid, arguments, constants = plan(input, labels, align_corners)
        with torch.cuda.device_of(input):
            kernel[grid](*arguments, **constants)
    return labels


def launches():
    """(what, *plan) of every launch that config() can choose, and of each dtype and layout, for the compile gates."""

    def one(what, cell, dtype=torch.float32, label=torch.uint8, layout=torch.contiguous_format, align_corners=False):
        input = torch.empty((2, 21, 8, 8), dtype=dtype, device="meta").contiguous(memory_format=layout)
        labels = torch.empty((2, 8 * cell[0], 8 * cell[1]), dtype=label, device="meta")
        return what, *plan(input, labels, align_corners)

    for cell in itertools.product((1, 2, 4, 8, 16), repeat=2):
        yield one(f"cells {cell[0]}x{cell[1]}", cell)
    for dtype, label in ((torch.float16, torch.int32), (torch.bfloat16, torch.int64)):
        yield one(str(dtype), (8, 8), dtype, label, torch.channels_last, align_corners=True)
