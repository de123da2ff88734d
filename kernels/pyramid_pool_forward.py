"""The forward kernels of pyramid_pool: first what each segment of rows has of each cell, then the cells.

A program of the first owns a segment of rows, which no cell divides, and a block of columns and channels. It reads each
pixel once, along the rows, and pools the columns to those of every bin's cells: what each cell has of this block. A
program of the second owns some cells and a block of channels, and pools what the first left of them.
Between them lie N C (segments) (blocks of columns) (columns of all bins) numbers in float32: for PSPNet's bins and 60 x
60 pixels 1 / 17 as many as pixels. Maxima have their places beside them, int64.
"""

import torch
import triton
import triton.language as tl

from fastseg.kernels.pyramid_pool_segments import (
    cells_of_pixel,
    config,
    pixels_of_cell,
    pixels_of_segment,
    segment_of,
    shares,
)

NOWHERE = tl.constexpr(2**62)  # after all places


@triton.jit
def take(value, at, other, other_at):
    """Of pairs (number, place), the larger number: any NaN is; of equals the first place, of NaN the last."""
    is_better = (other > value) | ((other == value) & (other_at < at))
    is_better |= (other != other) & ((value == value) | (other_at > at))
    return tl.where(is_better, other, value), tl.where(is_better, other_at, at)


@triton.jit
def largest(value, at, mask, AXIS: tl.constexpr):
    """take() along an axis, of places >= 0. Some number must be in the mask."""
    last_nan = tl.max(tl.where(mask & (value != value), at, -1), axis=AXIS, keep_dims=True)
    most = tl.max(tl.where(mask & (value == value), value, float("-inf")), axis=AXIS, keep_dims=True)
    place = tl.min(tl.where(mask & (value == most), at, NOWHERE), axis=AXIS, keep_dims=True)
    has_nan = last_nan >= 0
    return tl.where(has_nan, float("nan"), most), tl.where(has_nan, last_nan, place)


# The sizes along the axes are not specialised, as in upsample_argmax. `channels` is: whole vectors are only loaded
# where the compiler knows that it is a multiple of 16.
@triton.jit(do_not_specialize=["H", "W", "cuts", "segments", "column_blocks", "channel_blocks"])
def pyramid_pool_segments_kernel(
    input_ptr,  # (N, C, H, W), any strides
    pooled_ptr,  # (N, segments, blocks of columns, columns of all bins, C), float32
    places_ptr,  # y W + x of its maxima, or None
    channels,
    H,
    W,
    cuts,
    segments,
    column_blocks,
    channel_blocks,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,  # of all bins
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    # One grid axis (the others end at 65535).
    program = tl.program_id(0)
    channel_block = program % channel_blocks
    column_block = program // channel_blocks % column_blocks
    segment = program // channel_blocks // column_blocks % segments
    image = (program // channel_blocks // column_blocks // segments).to(tl.int64)
    MAX: tl.constexpr = places_ptr is not None

    begin, end = pixels_of_segment(segment, H, cuts, BINS, 0)
    k = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    x = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
    mask = (k < channels)[:, None] & (x < W)[None, :]
    columns = input_ptr + image * stride_n + (k.to(tl.int64) * stride_c)[:, None]
    columns += (x.to(tl.int64) * stride_w)[None, :]
    value = tl.full((BLOCK_C, BLOCK_X), float("-inf") if MAX else 0.0, tl.float32)
    at = begin.to(tl.int64) * W + x[None, :] + tl.zeros((BLOCK_C, BLOCK_X), tl.int64)
    for below in range(0, end - begin):
        y = begin + below
        pixel = tl.load(columns + y.to(tl.int64) * stride_h, mask=mask, other=0.0).to(tl.float32)
        if MAX:
            value, at = take(value, at, pixel, y.to(tl.int64) * W + x[None, :])
        else:
            value += pixel

    first_x = column_block * BLOCK_X
    last_x = tl.minimum(first_x + BLOCK_X, W) - 1
    to = ((image * segments + segment) * column_blocks + column_block) * COLUMNS * channels + k[:, None]
    for bin in tl.static_range(1, len(BINS), 2):
        first_cell, _ = cells_of_pixel(first_x, W, BINS[bin])
        _, end_cell = cells_of_pixel(last_x, W, BINS[bin])
        for beside in range(0, end_cell - first_cell):
            j = first_cell + beside
            begin_x, end_x = pixels_of_cell(j, W, BINS[bin])
            inside = ((x >= begin_x) & (x < end_x))[None, :]
            if MAX:
                pooled, place = largest(value, at, inside, 1)
                tl.store(places_ptr + to + j.to(tl.int64) * channels, place, mask=(k < channels)[:, None])
            else:
                pooled = tl.sum(tl.where(inside, value, 0.0), axis=1, keep_dims=True)
            tl.store(pooled_ptr + to + j.to(tl.int64) * channels, pooled, mask=(k < channels)[:, None])
        to += BINS[bin] * channels


@triton.jit(do_not_specialize=["H", "W", "cuts", "segments", "column_blocks", "channel_blocks"])
def pyramid_pool_cells_kernel(
    pooled_ptr,
    places_ptr,
    output_ptr,  # (N, C, CELLS), with the next one's strides
    indices_ptr,
    channels,
    H,
    W,
    cuts,
    segments,
    column_blocks,
    channel_blocks,
    stride_n,
    stride_c,
    stride_s,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_X: tl.constexpr,  # of the kernel above
    BLOCK_S: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    CELL_BLOCKS: tl.constexpr = (CELLS + BLOCK_S - 1) // BLOCK_S
    program = tl.program_id(0)
    channel_block = program % channel_blocks
    cell = program // channel_blocks % CELL_BLOCKS * BLOCK_S + tl.arange(0, BLOCK_S)
    image = (program // channel_blocks // CELL_BLOCKS).to(tl.int64)
    MAX: tl.constexpr = places_ptr is not None

    # The bins of the cells, their number in it, and their place among the columns of all bins.
    h, w, number, column = cell * 0, cell * 0, cell * 0, cell * 0
    before = 0
    columns_before = 0
    for bin in tl.static_range(0, len(BINS), 2):
        is_here = cell >= before
        h, w = tl.where(is_here, BINS[bin], h), tl.where(is_here, BINS[bin + 1], w)
        number = tl.where(is_here, cell - before, number)
        column = tl.where(is_here, columns_before + (cell - before) % BINS[bin + 1], column)
        before += BINS[bin] * BINS[bin + 1]
        columns_before += BINS[bin + 1]
    begin_y, end_y = pixels_of_cell(number // w, H, h)
    begin_x, end_x = pixels_of_cell(number % w, W, w)

    # Each has `parts` in the rows of its segments and the blocks of its columns.
    first_segment = segment_of(begin_y, H, cuts, BINS, 0)
    first_block = begin_x // BLOCK_X
    blocks = (end_x - 1) // BLOCK_X - first_block + 1
    parts = tl.where(cell < CELLS, (segment_of(end_y - 1, H, cuts, BINS, 0) - first_segment + 1) * blocks, 0)
    k = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    value = tl.full((BLOCK_S, BLOCK_PARTS, BLOCK_C), float("-inf") if MAX else 0.0, tl.float32)
    at = tl.full((BLOCK_S, BLOCK_PARTS, BLOCK_C), NOWHERE, tl.int64)
    for first in range(0, tl.max(parts, axis=0), BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[None, :]
        row = image * segments + first_segment[:, None] + part // blocks[:, None]
        block = row * column_blocks + first_block[:, None] + part % blocks[:, None]
        source = ((block * COLUMNS + column[:, None]) * channels)[:, :, None] + k[None, None, :]
        mask = (part < parts[:, None])[:, :, None] & (k < channels)[None, None, :]
        pooled = tl.load(pooled_ptr + source, mask=mask, other=float("-inf") if MAX else 0.0)
        if MAX:
            value, at = take(value, at, pooled, tl.load(places_ptr + source, mask=mask, other=NOWHERE))
        else:
            value += pooled

    to = image * stride_n + k.to(tl.int64)[None, None, :] * stride_c + (cell.to(tl.int64) * stride_s)[:, None, None]
    mask = (cell < CELLS)[:, None, None] & (k < channels)[None, None, :]
    if MAX:
        result, place = largest(value, at, at >= 0, 1)
        tl.store(indices_ptr + to, place, mask=mask)
    else:
        total = tl.sum(value, axis=1, keep_dims=True)
        count = ((end_y - begin_y) * (end_x - begin_x)).to(tl.float32)[:, None, None]
        result = tl.div_rn(total, tl.zeros_like(total) + count)
    tl.store(output_ptr + to, result.to(output_ptr.dtype.element_ty), mask=mask)


def plan(input, output, indices, bins, max):
    """[(kernel, grid, its arguments, its constants)] of the forward launches; tensors may be on the meta device."""
    (n, c, h, w), cells, columns = input.shape, output.shape[2], sum(bins[1::2])
    constants = config(c > 1 and input.stride(1) == 1, c, w)
    cuts, segments, column_blocks, channel_blocks = shared = shares(input.shape, bins, constants)
    shape = n, segments, column_blocks, columns, c
    pooled = torch.empty(shape, dtype=torch.float32, device=input.device)
    places = torch.empty(shape, dtype=torch.int64, device=input.device) if max else None
    constants |= {"BINS": tuple(bins), "COLUMNS": columns}
    first = pooled, places, c, h, w, *shared, *input.stride()
    grid = (n * segments * column_blocks * channel_blocks,)
    yield pyramid_pool_segments_kernel, grid, (input, *first), constants
    cell_block, block_c = 8, min(triton.next_power_of_2(c), 32)
    shared = cuts, segments, column_blocks, triton.cdiv(c, block_c)
    second = pooled, places, output, indices if max else None, c, h, w, *shared, *output.stride()
    constants = constants | {"CELLS": cells, "BLOCK_S": cell_block, "BLOCK_PARTS": 8, "BLOCK_C": block_c}
    yield pyramid_pool_cells_kernel, (n * triton.cdiv(cells, cell_block) * shared[3],), second, constants
