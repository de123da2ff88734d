"""Computes the bilinear interpolation of an input, and its gradient  (fastseg/ops/upsample_bilinear.py).

Forward: a program owns the output rows between two input rows (every PARTS-th of them, if they are many), for a block
of columns and channels. It interpolates along the two input rows once, then blends them for each of its output rows.
Reads each input from DRAM once (4 loads per program and column, mostly from L1 and L2) and writes each output once.
Backward: a program owns a block of columns and channels of one input row, and gathers from the outputs that have those
pixels for a neighbour. Each output is read for the 2 x 2 pixels around it: once from DRAM, once more from L2 for the
other row, else from L1. Writes each input's gradient once.
Blocks are long where memory is dense: along the channels of channels_last, else along the columns.
Precision: float32 in a fixed order, rounded once at the store. Zero weights count, so inf and NaN spread as in PyTorch.
"""

import itertools

import torch
import triton
import triton.language as tl

from fastseg.kernels.bilinear import fraction, low_index, neighbour, outputs_of, scale, span, span_count
from fastseg.kernels.launch import launch
from fastseg.ops.layout import memory_format

ROWS_PER_PROGRAM = 16  # of output; rows between few input rows are shared out, or some GPUs would idle


def config(channels_last, width):
    """Launch choices of the forward kernel: 8 outputs a thread, in rows of 16 bytes or more."""
    wide = not channels_last and width > 64
    return {"BLOCK_C": 4 if wide else 32, "BLOCK_X": 256 if wide else 32, "num_warps": 4}


def backward_config(channels_last, width, cell_width):
    """Launch choices of the backward kernel: 16 terms a thread at a time.

    A pixel's outputs in a row are its taps, two cells' worth. TAPS takes all of them up to 64, so that the pixels'
    common outputs are loaded together and come from L1.
    """
    taps = min(triton.next_power_of_2(2 * cell_width), 64)
    block_c = 32 if channels_last else 2048 // taps // (32 if width > 8 else 4)
    block_x = 2048 // taps // block_c
    # Left alone, ptxas stops at 128 registers for one of the shapes and spills.
    return {"TAPS": taps, "BLOCK_C": block_c, "BLOCK_X": block_x, "num_warps": 4, "maxnreg": 255}


# The sizes along the axes are not specialised, as in upsample_argmax. `channels` is: whole vectors are only loaded
# where the compiler knows that it is a multiple of 16.
@triton.jit(do_not_specialize=["h", "w", "H", "W", "row_spans", "parts", "column_blocks", "channel_blocks"])
def upsample_bilinear_kernel(
    input_ptr,  # (N, C, h, w), any strides
    output_ptr,  # (N, C, H, W), dense
    channels,
    h,
    w,
    H,
    W,
    row_spans,
    parts,
    column_blocks,
    channel_blocks,
    row_scale,
    column_scale,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    output_stride_n,
    output_stride_c,
    output_stride_h,
    output_stride_w,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    # One grid axis (the others end at 65535).
    program = tl.program_id(0)
    column_block = program % column_blocks
    channel_block = program // column_blocks % channel_blocks
    part = program // column_blocks // channel_blocks % parts
    row = program // column_blocks // channel_blocks // parts % row_spans
    image = (program // column_blocks // channel_blocks // parts // row_spans).to(tl.int64)

    low_y, high_y, begin_y, end_y = span(row, h, H, row_scale, ALIGN_CORNERS)
    k = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    x = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
    low_x = low_index(x, w, column_scale, ALIGN_CORNERS)
    high_x = neighbour(low_x, w, W)
    rightness = fraction(x, low_x, column_scale, ALIGN_CORNERS)[None, :]
    mask = (k < channels)[:, None] & (x < W)[None, :]

    plane = input_ptr + image * stride_n + (k.to(tl.int64) * stride_c)[:, None]  # (BLOCK_C, 1)
    left = (low_x.to(tl.int64) * stride_w)[None, :]  # (1, BLOCK_X)
    right = (high_x.to(tl.int64) * stride_w)[None, :]
    top = plane + low_y.to(tl.int64) * stride_h
    bottom = plane + high_y.to(tl.int64) * stride_h
    a = tl.load(top + left, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(top + right, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(bottom + left, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(bottom + right, mask=mask, other=0.0).to(tl.float32)
    upper = (1.0 - rightness) * a + rightness * b
    lower = (1.0 - rightness) * c + rightness * d

    output = output_ptr + image * output_stride_n + (k.to(tl.int64) * output_stride_c)[:, None]
    output += (x.to(tl.int64) * output_stride_w)[None, :]
    for below in range(part, end_y - begin_y, parts):
        y = begin_y + below
        downness = fraction(y, low_y, row_scale, ALIGN_CORNERS)
        value = (1.0 - downness) * upper + downness * lower
        tl.store(output + y.to(tl.int64) * output_stride_h, value.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["h", "w", "H", "W", "column_blocks", "channel_blocks"])
def upsample_bilinear_backward_kernel(
    grad_ptr,  # (N, C, H, W), any strides
    grad_input_ptr,  # (N, C, h, w), dense
    channels,
    h,
    w,
    H,
    W,
    column_blocks,
    channel_blocks,
    row_scale,
    column_scale,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    input_stride_n,
    input_stride_c,
    input_stride_h,
    input_stride_w,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    TAPS: tl.constexpr,
):
    program = tl.program_id(0)
    column_block = program % column_blocks
    channel_block = program // column_blocks % channel_blocks
    row = program // column_blocks // channel_blocks % h
    image = (program // column_blocks // channel_blocks // h).to(tl.int64)

    k = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    column = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
    begin_y, middle_y, end_y = outputs_of(row, h, H, row_scale, ALIGN_CORNERS)
    begin_x, middle_x, end_x = outputs_of(column, w, W, column_scale, ALIGN_CORNERS)
    end_x = tl.where(column < w, end_x, begin_x)
    alone_y = neighbour(row, h, H) == row
    alone_x = neighbour(column, w, W) == column
    plane = grad_ptr + image * stride_n + (k.to(tl.int64) * stride_c)[:, None, None]  # (BLOCK_C, 1, 1)

    total = tl.zeros((BLOCK_C, BLOCK_X, TAPS), tl.float32)
    for first in range(0, tl.max(end_x - begin_x, axis=0), TAPS):
        x = begin_x[:, None] + first + tl.arange(0, TAPS)[None, :]  # (BLOCK_X, TAPS)
        mask = (k < channels)[:, None, None] & (x < end_x[:, None])[None]
        terms = plane + (x.to(tl.int64) * stride_w)[None]
        partial = tl.zeros((BLOCK_C, BLOCK_X, TAPS), tl.float32)
        for below in range(0, end_y - begin_y):
            y = begin_y + below
            term = tl.load(terms + y.to(tl.int64) * stride_h, mask=mask, other=0.0).to(tl.float32)
            is_low = y >= middle_y
            downness = fraction(y, tl.where(is_low, row, row - 1), row_scale, ALIGN_CORNERS)
            partial += term * tl.where(is_low, 1.0 - downness, downness)
            partial += tl.where(is_low & alone_y, term * downness, 0.0)
        is_low = x >= middle_x[:, None]
        low_x = tl.where(is_low, column[:, None], column[:, None] - 1)
        rightness = fraction(x, low_x, column_scale, ALIGN_CORNERS)[None]
        total += partial * tl.where(is_low[None], 1.0 - rightness, rightness)
        total += tl.where((is_low & alone_x[:, None])[None], partial * rightness, 0.0)

    grad_input = grad_input_ptr + image * input_stride_n + row.to(tl.int64) * input_stride_h
    grad_input += (k.to(tl.int64) * input_stride_c)[:, None] + (column.to(tl.int64) * input_stride_w)[None, :]
    mask = (k < channels)[:, None] & (column < w)[None, :]
    tl.store(grad_input, tl.sum(total, axis=2).to(grad_input_ptr.dtype.element_ty), mask=mask)


def plan(input, output, align_corners, channels_last):
    """(kernel, grid, its arguments, its constants) of the forward launch; tensors may be on the meta device."""
    (n, c, h, w), (H, W) = input.shape, output.shape[2:]
    constants = config(channels_last, W)
    row_spans, parts = span_count(h, H, align_corners), triton.cdiv(triton.cdiv(H, h), ROWS_PER_PROGRAM)
    blocks = triton.cdiv(W, constants["BLOCK_X"]), triton.cdiv(c, constants["BLOCK_C"])
    scales = scale(h, H, align_corners), scale(w, W, align_corners)
    arguments = (input, output, c, h, w, H, W, row_spans, parts, *blocks, *scales, *input.stride(), *output.stride())
    constants |= {"ALIGN_CORNERS": align_corners}
    return upsample_bilinear_kernel, (n * row_spans * parts * blocks[0] * blocks[1],), arguments, constants


def backward_plan(grad, grad_input, align_corners):
    """The same of the backward launch."""
    (n, c, h, w), (H, W) = grad_input.shape, grad.shape[2:]
    constants = backward_config(c > 1 and grad.stride(1) == 1, w, triton.cdiv(W, w))
    blocks = triton.cdiv(w, constants["BLOCK_X"]), triton.cdiv(c, constants["BLOCK_C"])
    scales = scale(h, H, align_corners), scale(w, W, align_corners)
    arguments = (grad, grad_input, c, h, w, H, W, *blocks, *scales, *grad.stride(), *grad_input.stride())
    constants |= {"ALIGN_CORNERS": align_corners}
    return upsample_bilinear_backward_kernel, (n * h * blocks[0] * blocks[1],), arguments, constants


def empty(like, size, channels_last):
    shape = *like.shape[:2], *size
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last))


def upsample_bilinear(input, size, align_corners, channels_last):
    output = empty(input, size, channels_last)
    launch(input, *plan(input, output, align_corners, channels_last))
    return output


def upsample_bilinear_backward(grad, size, align_corners, channels_last):
    grad_input = empty(grad, size, channels_last)
    launch(grad, *backward_plan(grad, grad_input, align_corners))
    return grad_input


def launches():
    """(what, *plan) of every launch that configs can choose, and of each dtype and layout, for the compile gates."""
    layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

    def both(layout, shape, size, dtype=torch.float32, align_corners=False):
        small, large = (
            torch.empty((*shape[:2], *sides), dtype=dtype, device="meta", memory_format=layouts[layout])
            for sides in (shape[2:], size)
        )
        what = f"{layout} {'x'.join(map(str, shape))} to {'x'.join(map(str, size))} {dtype}"
        yield what, *plan(small, large, align_corners, layout == "channels_last")
        yield what, *backward_plan(large, small, align_corners)

    for layout, width, factor in itertools.product(layouts, (8, 16), (1, 2, 4, 8, 16, 32)):
        yield from both(layout, (2, 64, 16, width), (16 * factor, width * factor))
    for layout, dtype in itertools.product(layouts, (torch.float16, torch.bfloat16)):
        yield from both(layout, (2, 64, 16, 16), (128, 128), dtype, align_corners=True)
        yield from both(layout, (2, 21, 65, 65), (513, 513), dtype)
