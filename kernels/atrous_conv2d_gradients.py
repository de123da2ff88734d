"""The weight's gradient of atrous_conv2d: per tap, [channels] x [pixels that read the image through it] x [outputs].

A row of the part table (fastseg/ops/atrous_conv2d_tiles.py) says which pixels. Their sums are cut into parts where the
results alone would be too few programs, and added up by torch, always in the same order. Reads inputs and gradients
once per tap and block of the other's channels, from L2 after the first.
"""

import triton
import triton.language as tl

from fastseg.kernels.products import empty
from fastseg.ops.atrous_conv2d_tiles import PART_FIELDS


def config(dtype, precision, channels, outputs):
    """Launch choices. Blocks are square, and no longer than the shorter side needs: 2048 channels may have 21 outputs.

    IEEE products in more than 64 x 64 spill.
    """
    ieee = precision == "ieee"
    block = min(max(triton.next_power_of_2(min(channels, outputs)), 16), 64 if ieee else 128)
    return {
        "BLOCK": block,
        "DEPTH": 16 if ieee else 128 // dtype.itemsize,
        "num_warps": 8 if block == 128 or ieee else 4,
        "num_stages": 3,
        "maxnreg": 255,
        "enable_fp_fusion": True,
    }


@triton.jit(do_not_specialize=["size", "taps"])
def atrous_conv2d_backward_weight_kernel(
    grad_ptr,  # (N, H', W', O), dense
    input_ptr,  # (N, H, W, C), dense
    sums_ptr,  # (parts, taps, C, O), dense
    parts_ptr,
    taps,
    size,  # H, W, H', W'
    stride,
    channels,
    outputs,
    FIELDS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    in_height, in_width, out_height, out_width = size
    o_blocks = tl.cdiv(outputs, BLOCK)
    c_blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    o = program % o_blocks * BLOCK + tl.arange(0, BLOCK)
    c = program // o_blocks % c_blocks * BLOCK + tl.arange(0, BLOCK)
    row = parts_ptr + program // o_blocks // c_blocks * FIELDS
    first, stop = tl.load(row), tl.load(row + 1)
    top, left, height, width = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    input_y, input_x = tl.load(row + 6), tl.load(row + 7)
    tap, part = tl.load(row + 8), tl.load(row + 9)

    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for begin in range(first, stop, DEPTH):
        pixel = begin + tl.arange(0, DEPTH)
        image = (pixel // (height * width)).to(tl.int64)
        y = pixel % (height * width) // width
        x = pixel % width
        there = pixel < stop
        source = (image * in_height + input_y + y * stride[0]) * in_width + input_x + x * stride[1]
        target = (image * out_height + top + y) * out_width + left + x
        # As it is multiplied, (channels, pixels): an operand transposed later would pass through registers on sm_80.
        a_mask = there[None, :] & (c < channels)[:, None]
        a = tl.load(input_ptr + (source * channels)[None, :] + c[:, None], mask=a_mask, other=0.0)
        g_mask = there[:, None] & (o < outputs)[None, :]
        g = tl.load(grad_ptr + (target * outputs)[:, None] + o[None, :], mask=g_mask, other=0.0)
        total = tl.dot(a, g, total, input_precision=PRECISION)

    at = ((part.to(tl.int64) * taps + tap) * channels + c)[:, None] * outputs + o[None, :]
    tl.store(sums_ptr + at, total.to(sums_ptr.dtype.element_ty), mask=(c < channels)[:, None] & (o < outputs)[None, :])


def plan(grad, input, table, stride, taps, count, constants, precision):
    """(launch as of atrous_conv2d_forward.py, its sums (parts, taps, C, O))."""
    (_, c, h, w), (_, o, out_h, out_w) = input.shape, grad.shape
    sums = empty(count, (taps, c, o), grad, False)
    constants = constants | {"FIELDS": len(PART_FIELDS), "PRECISION": precision}
    programs = len(table) * triton.cdiv(c, constants["BLOCK"]) * triton.cdiv(o, constants["BLOCK"])
    arguments = (grad, input, sums, table, taps, (h, w, out_h, out_w), tuple(stride), c, o)
    return (atrous_conv2d_backward_weight_kernel, (programs,), arguments, constants), sums
