"""The backward kernel of pyramid_pool.

A program owns a segment of rows and a block of columns and channels. It gathers from the cells that hold its pixels:
means once for all its rows, maxima row by row; and writes each pixel once.
"""

import triton
import triton.language as tl

from fastseg.kernels.pyramid_pool_segments import (
    cells_of_pixel,
    config,
    most_cells_of_a_pixel,
    pixels_of_cell,
    pixels_of_segment,
    shares,
)


@triton.jit
def gather(cells, index_cells, y, x, k_mask, H, W, stride_s, index_stride_s, BINS: tl.constexpr):
    """(channels, columns): the sum, over the cells that hold pixels (y, x), of their gradients' parts.

    cells: pointers to the gradients of cell 0 of some channels, (channels, 1); index_cells the same, or None."""
    MAX: tl.constexpr = index_cells is not None
    total = tl.zeros((cells.shape[0], x.shape[0]), tl.float32)
    before = 0
    for bin in tl.static_range(0, len(BINS), 2):
        first_i, end_i = cells_of_pixel(y, H, BINS[bin])
        first_j, end_j = cells_of_pixel(x, W, BINS[bin + 1])
        for below in range(0, end_i - first_i):
            i = first_i + below
            begin_y, end_y = pixels_of_cell(i, H, BINS[bin])
            for beside in range(0, most_cells_of_a_pixel(W, BINS[bin + 1])):
                j = first_j + beside
                begin_x, end_x = pixels_of_cell(j, W, BINS[bin + 1])
                mask = k_mask[:, None] & ((x < W) & (j < end_j))[None, :]
                cell = (before + i * BINS[bin + 1] + j).to(tl.int64)[None, :]
                grad = tl.load(cells + cell * stride_s, mask=mask, other=0.0).to(tl.float32)
                if MAX:
                    index = tl.load(index_cells + cell * index_stride_s, mask=mask, other=-1)
                    total += tl.where(index == y.to(tl.int64) * W + x[None, :], grad, 0.0)
                else:
                    count = ((end_y - begin_y) * (end_x - begin_x)).to(tl.float32)[None, :]
                    total += tl.div_rn(grad, tl.zeros_like(grad) + count)
        before += BINS[bin] * BINS[bin + 1]
    return total


@triton.jit(do_not_specialize=["H", "W", "cuts", "segments", "column_blocks", "channel_blocks"])
def pyramid_pool_backward_kernel(
    grad_ptr,  # (N, C, S), any strides
    indices_ptr,  # the same, or None
    grad_input_ptr,  # (N, C, H, W), dense
    channels,
    H,
    W,
    cuts,
    segments,
    column_blocks,
    channel_blocks,
    grad_strides,
    index_strides,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    BINS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    program = tl.program_id(0)
    channel_block = program % channel_blocks
    column_block = program // channel_blocks % column_blocks
    segment = program // channel_blocks // column_blocks % segments
    image = (program // channel_blocks // column_blocks // segments).to(tl.int64)

    begin, end = pixels_of_segment(segment, H, cuts, BINS, 0)
    k = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    x = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
    channel = k.to(tl.int64)[:, None]
    k_mask = k < channels
    cells = grad_ptr + image * grad_strides[0] + channel * grad_strides[1]
    to = grad_input_ptr + image * stride_n + channel * stride_c + (x.to(tl.int64) * stride_w)[None, :]
    mask = k_mask[:, None] & (x < W)[None, :]
    if indices_ptr is None:
        if begin < end:
            total = gather(cells, None, begin, x, k_mask, H, W, grad_strides[2], 0, BINS)
            total = total.to(grad_input_ptr.dtype.element_ty)
            for below in range(0, end - begin):
                y = begin + below
                tl.store(to + y.to(tl.int64) * stride_h, total, mask=mask)
    else:
        index_cells = indices_ptr + image * index_strides[0] + channel * index_strides[1]
        for below in range(0, end - begin):
            y = begin + below
            total = gather(cells, index_cells, y, x, k_mask, H, W, grad_strides[2], index_strides[2], BINS)
            total = total.to(grad_input_ptr.dtype.element_ty)
            tl.store(to + y.to(tl.int64) * stride_h, total, mask=mask)


def backward_plan(grad, indices, grad_input, bins, max):
    """The launch of the backward kernel."""
    n, c, h, w = grad_input.shape
    constants = config(c > 1 and grad_input.stride(1) == 1, c, w)
    shared = shares(grad_input.shape, bins, constants)
    index_strides = indices.stride() if max else (0, 0, 0)
    arguments = grad, indices if max else None, grad_input, c, h, w, *shared
    arguments += grad.stride(), index_strides, *grad_input.stride()
    grid = (n * shared[1] * shared[2] * shared[3],)
    return pyramid_pool_backward_kernel, grid, arguments, constants | {"BINS": tuple(bins)}
