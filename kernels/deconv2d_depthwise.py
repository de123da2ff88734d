"""The depthwise forward kernel of deconv2d: a group per channel.

A program owns ROWS output rows of one phase, in a block of a row: of (x, c) in channels_last, else of x. It loads each
weight once for all rows. The s outputs beside one another share their inputs: those come from L1. Stores are of 16
bytes where rows of the output are a multiple of that.
"""

import triton
import triton.language as tl

from fastseg.kernels.deconv2d_blocks import best_block, power_of_2
from fastseg.kernels.deconv2d_geometry import geometry, rows_of_phase, steps, strides

ROWS = 8  # of one phase, that a program multiplies by the same weights


def config(length, rows):
    """Launch choices, from the consecutive outputs in a row and the rows in a phase."""
    size = best_block(length, (512, 256, 128, 64, 32), overhead=64)
    return {"BLOCK": size, "ROWS": power_of_2(rows, 1, ROWS), "num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_depthwise_kernel(
    input_ptr,  # (N, C, h, w), any strides
    weight_ptr,  # (C, 1, *K), any strides
    bias_ptr,
    skip_ptr,
    output_ptr,  # (N, C, H, W), dense
    sizes,  # N, h, w, H, W
    window,
    grid,  # blocks of a row, parts of a phase's rows, channels that lie apart
    input_strides,
    weight_strides,
    bias_stride,
    skip_strides,
    output_strides,
    C: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    INVERSE: tl.constexpr,  # of D / gcd(S, D), modulo STEP, along x: from an output's place to its phase
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch, h, w, H, W = sizes
    top, left = window
    blocks, parts, planes = grid
    program = tl.program_id(0)
    block = program % blocks
    phase = program // blocks % S[0]
    part = program // blocks // S[0] % parts
    plane = program // blocks // S[0] // parts % planes
    image = (program // blocks // S[0] // parts // planes).to(tl.int64)

    element = block * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        x = element // C
        c = element % C
    else:
        x = element
        c = plane + tl.zeros_like(element)
    first_y, first_row, taps = rows_of_phase(phase, top, K[0], S[0], D[0], STEP[0])
    row = part * ROWS + tl.arange(0, ROWS)
    y = first_y + row * S[0]
    mask = (y < H)[:, None] & (x < W)[None, :]

    common: tl.constexpr = S[1] // STEP[1]
    e = (x + left) % S[1] // common * INVERSE % STEP[1]
    meets = (x < W) & ((x + left) % common == 0)
    first_column = (x + left - e * D[1]) // S[1]
    c = c.to(tl.int64)
    weight_ptr += c * weight_strides[0]
    input_ptr += image * input_strides[0] + c * input_strides[1]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for ty in range(taps):
        i = first_row + row - ty * (D[0] * STEP[0] // S[0])
        ky = phase + ty * STEP[0]
        for tx in range((K[1] + STEP[1] - 1) // STEP[1]):
            j = first_column - tx * (D[1] * STEP[1] // S[1])
            kx = e + tx * STEP[1]
            there = meets & (j >= 0) & (j < w) & (kx < K[1])
            at = ky.to(tl.int64) * weight_strides[2] + kx.to(tl.int64) * weight_strides[3]
            weight = tl.load(weight_ptr + at, mask=there, other=0.0)
            value = tl.load(
                (input_ptr + j.to(tl.int64) * input_strides[3])[None, :] + i.to(tl.int64)[:, None] * input_strides[2],
                mask=there[None, :] & ((i >= 0) & (i < h))[:, None],
                other=0.0,
            )
            total += value.to(tl.float32) * weight.to(tl.float32)[None, :]

    y = y.to(tl.int64)[:, None]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + c * bias_stride, mask=x < W, other=0.0).to(tl.float32)[None, :]
    if skip_ptr is not None:
        at = image * skip_strides[0] + c * skip_strides[1] + x.to(tl.int64) * skip_strides[3]
        total += tl.load(skip_ptr + at[None, :] + y * skip_strides[2], mask=mask, other=0.0).to(tl.float32)
    output_ptr += image * output_strides[0] + y * output_strides[2]
    if not CHANNELS_LAST:
        output_ptr += plane.to(tl.int64) * output_strides[1]
    tl.store(output_ptr + element[None, :], total.to(output_ptr.dtype.element_ty), mask=mask)


def plan(input, weight, bias, skip, output, stride, dilation, groups, window, channels_last, precision):
    """As the plan of deconv2d.py."""
    (n, c, h, w), (H, W), step = input.shape, output.shape[2:], steps(stride, dilation)
    rows = triton.cdiv(H, stride[0])
    planes, length = (1, W * c) if channels_last else (c, W)
    constants = config(length, rows)
    blocks, parts = triton.cdiv(length, constants["BLOCK"]), triton.cdiv(rows, constants["ROWS"])
    constants |= geometry(weight.shape[2:], stride, dilation) | {
        "C": c,
        "STEP": step,
        "INVERSE": pow(dilation[1] * step[1] // stride[1], -1, step[1]),
        "CHANNELS_LAST": channels_last,
    }
    weight = channels_beside(weight) if channels_last else weight
    arguments = (input, weight, bias, skip, output, (n, h, w, H, W), window[:2], (blocks, parts, planes))
    arguments += (input.stride(), weight.stride(), *strides(bias, 1), strides(skip, 4), output.stride())
    return deconv2d_depthwise_kernel, (n * planes * parts * stride[0] * blocks,), arguments, constants


def channels_beside(weight):
    """A depthwise weight (C, 1, *K) with the channels beside one another."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
