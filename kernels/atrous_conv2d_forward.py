"""The product of atrous_conv2d for every GPU: [pixels] x [taps and channels] x [outputs], a tile per program.

A row of the tile table (fastseg/ops/atrous_conv2d_tiles.py) says all about a tile: TILE pixels of one region of the
output, the taps that read the image from there, a block of outputs. So the same kernel computes the input's gradient
and the branches of a pyramid. Tiles with most taps come first, that no long one is left for the end.
Reads its inputs once per tap, from L2 after the first, and its weights once per tile; writes each output once. A tile
of 128 x 128 in half precision has 64 products for each number it loads: an H200 needs 40 of L2's.
"""

import torch
import triton
import triton.language as tl

from fastseg.ops.atrous_conv2d_plan import TILE
from fastseg.ops.atrous_conv2d_tiles import TILE_FIELDS


def config(dtype, precision, channels, outputs):
    """Launch choices.

    IEEE products (of float32) are no work for tensor cores: a thread holds numbers of each of its rows and columns for
    BLOCK_K channels, so that it can have few. Else a step takes 128 bytes of channels, which a swizzled row of shared
    memory holds, and three stages of them stay below the 99 KB of an sm_86.
    """
    ieee = precision == "ieee"
    block_o = min(max(triton.next_power_of_2(outputs), 16), 64 if ieee else 128)
    block_k = 16 if ieee else 128 // dtype.itemsize
    return {
        "TILE": TILE,
        "BLOCK_O": block_o,
        "BLOCK_K": min(max(triton.next_power_of_2(channels), 16), block_k),
        "num_warps": 8,  # with 4, channels that must be loaded one by one spill
        "num_stages": 3,
        "maxnreg": 255,  # left alone, ptxas aims at 128 and may spill
        "enable_fp_fusion": True,
    }


# Plain arithmetic, shared with atrous_conv2d_hopper.py: the interpreter runs it here, tests run it as Python there.
@triton.jit
def step_of(index, channel_blocks, taps_x):
    """(row of taps, column of taps, block of channels) of a tile's step."""
    tap = index // channel_blocks
    return tap // taps_x, tap % taps_x, index % channel_blocks


@triton.jit
def weight_row(i, j, kernel_x, channels):
    """How many rows (of all outputs of one channel and tap) a tap's weights lie behind those of the tile's first."""
    return (i * kernel_x + j) * channels


@triton.jit(do_not_specialize=["batch", "size"])
def atrous_conv2d_kernel(
    input_ptr,  # (N, H, W, C), dense
    weight_ptr,  # packed as in atrous_conv2d_tiles.py
    scale_ptr,  # (O,), or None
    bias_ptr,  # (O,), or None
    residual_ptr,  # (N, H', W', O), dense, or None
    output_ptr,  # (N, H', W', O), dense
    tiles_ptr,
    batch,
    size,  # H, W, H', W'
    stride,
    channels,
    outputs,
    ALIGNED: tl.constexpr,  # a power of 2 that divides the outputs of every branch
    RELU: tl.constexpr,
    FIELDS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    in_height, in_width, out_height, out_width = size
    row = tiles_ptr + tl.program_id(0) * FIELDS
    first, top, left = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    height, width = tl.load(row + 3), tl.load(row + 4)
    taps_y, taps_x = tl.load(row + 5), tl.load(row + 6)
    input_y, input_x = tl.load(row + 7), tl.load(row + 8)
    dilation_y, dilation_x = tl.load(row + 9), tl.load(row + 10)
    weight, kernel_x = tl.multiple_of(tl.load(row + 11), ALIGNED), tl.load(row + 12)
    pitch = tl.multiple_of(tl.load(row + 13), ALIGNED)
    block_output = tl.multiple_of(tl.load(row + 14), ALIGNED)
    block_channel = tl.multiple_of(tl.load(row + 15), ALIGNED)

    pixel = first + tl.arange(0, TILE)
    image = (pixel // (height * width)).to(tl.int64)
    region_y = pixel % (height * width) // width
    region_x = pixel % width
    there = image < batch
    y = input_y + region_y * stride[0]
    x = input_x + region_x * stride[1]
    source = input_ptr + ((image * in_height + y) * in_width + x) * channels

    o = tl.arange(0, BLOCK_O)
    exists = block_output + o < pitch
    weight_ptr += weight + block_output
    total = tl.zeros((TILE, BLOCK_O), tl.float32)
    channel_blocks = tl.cdiv(channels, BLOCK_K)
    for index in range(taps_y * taps_x * channel_blocks):
        i, j, c_block = step_of(index, channel_blocks, taps_x)
        down = i * dilation_y
        right = j * dilation_x
        c = c_block * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = there & (y + down >= 0) & (y + down < in_height) & (x + right >= 0) & (x + right < in_width)
        to_tap = (down.to(tl.int64) * in_width + right) * channels
        a = tl.load(source[:, None] + (to_tap + c)[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        w_row = (weight_row(i, j, kernel_x, channels) + c).to(tl.int64) * pitch
        w = tl.load(weight_ptr + w_row[:, None] + o[None, :], mask=(c < channels)[:, None] & exists[None, :], other=0.0)
        total = tl.dot(a, w, total, input_precision=PRECISION)

    channel = block_channel + o
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    target = ((image * out_height + top + region_y) * out_width + left + region_x) * outputs
    at = target[:, None] + channel[None, :]
    mask = there[:, None] & exists[None, :]
    if residual_ptr is not None:
        total += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    tl.store(output_ptr + at, total.to(output_ptr.dtype.element_ty), mask=mask)


def new_output(input, size):
    """A new (N, *size) in channels_last."""
    shape = len(input), *size
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def plan(input, weights, scale, bias, residual, output, tiles, stride, relu, aligned, constants, precision):
    """(kernel, grid, its arguments, its constants) of a launch; tensors may be on the meta device."""
    (n, c, h, w), (o, out_h, out_w) = input.shape, output.shape[1:]
    constants = constants | {"ALIGNED": aligned, "FIELDS": len(TILE_FIELDS), "RELU": relu, "PRECISION": precision}
    arguments = (input, weights, scale, bias, residual, output, tiles, n, (h, w, out_h, out_w), tuple(stride), c, o)
    return atrous_conv2d_kernel, (len(tiles),), arguments, constants
