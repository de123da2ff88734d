"""The forward product of deconv2d: [input pixels (n, a, b)] x [taps (ty, tx, c)] x [phases and channels (e, o)].

A program owns, of the output rows of one phase, a block of cells (the s outputs of a row that start at one input pixel)
and a block of (e, o). All outputs of a row meet in its tile, so that it stores runs of s (NCHW) or s O (channels_last)
consecutive numbers. It multiplies no zeros but those of the last block of taps: (ty, c) is one axis.
Reads its inputs ceil(k / s)^2 times from L1, and its block of the weight once; writes each output once.

H200, 21 -> 21 channels, k64 s32 from 16x16: one image is 1 GFLOP and 25 MB of float32 output, 5 us at 4.8 TB/s. Half
precision's products take less (3 us with blocks filled up), IEEE float32's more (16 us at best): float32 is bounded by
arithmetic unless TF32 is allowed. The same ratio holds for k16 s8 from 64x64, whose output is as large; k4 s2 from
34x34 is 0.4 MB, one wave of small programs, and bounded by latency. Blocks of 128 pixels read weights half as often as
they write outputs; with blocks of 64, for want of pixels in one image, as often.
"""

import triton
import triton.language as tl

from fastseg.kernels.deconv2d_blocks import best_block, box, pixels_of, power_of_2
from fastseg.kernels.deconv2d_geometry import geometry, offset_of, offset_of_phase, rows_of_phase, steps, strides
from fastseg.kernels.products import PROGRAMS
from fastseg.ops.layout import memory_format


def config(dtype, precision, adding, channels_last, channels, outputs, taps, stride, rows, columns, rest):
    """Launch choices for rows by columns of cells; `rest` programs work on each cell and (e, o).

    (e, o) is one axis in channels_last; else o has its own blocks, beside e in whole, or up to 32 of it. Blocks of it
    are long and those of cells short, as weights are loaded as whole vectors, which few channels do not let inputs.
    IEEE products (of float32) are no work for tensor cores: a thread holds BLOCK_K numbers of each of its rows and
    columns, so that it can have few. Nor can it have many if `adding` a skip, each of whose numbers needs an address.
    """
    ieee = precision == "ieee"
    longest = 64 if ieee else (256 if adding else 512) // dtype.itemsize
    block_e = 1 if channels_last else power_of_2(stride, 1, 32)
    sizes = [size for size in (256, 128, 64, 32, 16) if block_e <= size <= longest]
    if channels_last:
        block_f = best_block(stride * outputs, sizes, overhead=16)
    else:
        block_f = block_e * best_block(outputs, [size // block_e for size in sizes], overhead=16 / block_e)
    many = triton.cdiv(rows * columns, 128) * triton.cdiv(stride * outputs, block_f) * rest >= PROGRAMS
    block_m = 128 if many and not (ieee or adding) and block_f < 256 else 64
    return {
        **box(rows, columns, block_m, narrowest=1 if channels_last else min(32 // block_e, 16)),
        "BLOCK_F": block_f,
        "BLOCK_E": block_e,
        "BLOCK_K": 16 if ieee else best_block(taps * channels, (128 // dtype.itemsize, 32, 16), overhead=4),
        "num_warps": 8 if ieee or block_m * block_f > 64 * 64 else 4,
        "num_stages": 3,
        "maxnreg": 255,  # left alone, ptxas aims at 128 and spills a little
        "enable_fp_fusion": True,
    }


@triton.jit
def offset_beside(o, x, strides):
    return o.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[3]


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_kernel(
    input_ptr,  # (N, GROUPS C, h, w), any strides
    weight_ptr,  # (GROUPS C, OUT, *K), dense, channels_last or not
    bias_ptr,  # (GROUPS OUT,), or None
    skip_ptr,  # (N, GROUPS OUT, H, W), any strides, or None
    output_ptr,  # (N, GROUPS OUT, H, W), dense
    sizes,  # N, h, w, H, W
    window,  # top, left
    grid,  # rows of cells, columns of cells, their first column, blocks of columns, blocks of (e, o)
    input_strides,
    bias_stride,
    skip_strides,
    output_strides,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,  # S / gcd(S, D): from one tap of a phase to its next
    CHANNELS_LAST: tl.constexpr,  # of the weight and the output
    WHOLE: tl.constexpr,  # the window has all outputs of all cells in a row
    PRECISION: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    batch, h, w, H, W = sizes
    top, left = window
    rows, columns, first_column, column_blocks, f_blocks = grid
    # One grid axis (the others end at 65535): blocks of (e, o) fastest, which read the same inputs.
    program = tl.program_id(0)
    f_block = program % f_blocks
    phase = program // f_blocks % S[0]
    group = program // f_blocks // S[0] % GROUPS
    tile = program // f_blocks // S[0] // GROUPS

    first_y, first_row, taps = rows_of_phase(phase, top, K[0], S[0], D[0], STEP[0])
    image, cell_row, cell_column = pixels_of(tile, rows, column_blocks, BOX_H, BOX_W, not CHANNELS_LAST)
    there = (image < batch) & (cell_column < columns)
    i = first_row + cell_row
    b = first_column + cell_column

    # Weights of tap (0, 0) as they lie in memory, those of this group and row; from there to the next c, ky and kx.
    f = f_block * BLOCK_F + tl.arange(0, BLOCK_F)
    if CHANNELS_LAST:
        place = f  # e OUT + o
        KY: tl.constexpr = K[1] * OUT
        KX: tl.constexpr = OUT
    else:
        BLOCK_O: tl.constexpr = BLOCK_F // BLOCK_E
        E_BLOCKS: tl.constexpr = (S[1] + BLOCK_E - 1) // BLOCK_E
        e = f_block % E_BLOCKS * BLOCK_E + tl.arange(0, BLOCK_F) % BLOCK_E
        o = f_block // E_BLOCKS * BLOCK_O + tl.arange(0, BLOCK_F) // BLOCK_E
        place = o * (K[0] * K[1]) + e
        KY: tl.constexpr = K[1]
        KX: tl.constexpr = 1
    weight_ptr += (group * C).to(tl.int64) * (OUT * K[0] * K[1]) + phase * KY
    input_ptr += (group * C).to(tl.int64) * input_strides[1]

    RAGGED: tl.constexpr = (K[1] % STEP[1] != 0) or (STEP[1] != S[1])  # phases differ in their number of taps
    total = tl.zeros((BOX_H * BOX_W, BLOCK_F), tl.float32)
    for tx in range((K[1] + STEP[1] - 1) // STEP[1]):
        j = b - tx * (D[1] * STEP[1] // S[1])
        pixel = image * input_strides[0] + i.to(tl.int64) * input_strides[2] + j.to(tl.int64) * input_strides[3]
        in_row = there & (j >= 0) & (j < w)
        if CHANNELS_LAST:
            has_tap = f < STEP[1] * OUT
            if RAGGED:
                has_tap = has_tap & (f < (K[1] - tx * STEP[1]) * OUT)
        else:
            has_tap = (o < OUT) & (e < STEP[1])
            if RAGGED:
                has_tap = has_tap & (e < K[1] - tx * STEP[1])
        for first in range(0, taps * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)  # ty C + c
            c = k % C
            ty = k // C
            up = ty * (D[0] * STEP[0] // S[0])
            tap = c.to(tl.int64) * input_strides[1] - up.to(tl.int64) * input_strides[2]
            # Consecutive inputs along the last axis, which the threads of a warp go along.
            if CHANNELS_LAST:
                y = i[:, None] - up[None, :]
                mask = (y >= 0) & (y < h) & (k < taps * C)[None, :] & in_row[:, None]
                x = tl.load(input_ptr + pixel[:, None] + tap[None, :], mask=mask, other=0.0)
            else:
                y = i[None, :] - up[:, None]
                mask = (y >= 0) & (y < h) & (k < taps * C)[:, None] & in_row[None, :]
                x = tl.trans(tl.load(input_ptr + pixel[None, :] + tap[:, None], mask=mask, other=0.0))
            row = c.to(tl.int64) * (OUT * K[0] * K[1]) + ty * (STEP[0] * KY) + tx * (STEP[1] * KX)
            weight = tl.load(
                weight_ptr + row[:, None] + place[None, :],
                mask=(k < taps * C)[:, None] & has_tap[None, :],
                other=0.0,
            )
            product = tl.dot(x, weight, total, input_precision=PRECISION)
            total = tl.where(has_tap[None, :], product, total) if RAGGED else product  # not 0 * NaN

    # The tile as (cells, (e, o)) or (o, cells, e): the order of outputs in memory.
    cell_y = first_y + cell_row * S[0]
    cell_x = b * S[1] - left
    there &= cell_y < H
    if CHANNELS_LAST:
        image, cell_y, cell_x, there = image[:, None], cell_y[:, None], cell_x[:, None], there[:, None]
        f = f[None, :]
        e, o = f // OUT, f % OUT
        exists = f < S[1] * OUT
    else:
        image, cell_y, cell_x = image[None, :, None], cell_y[None, :, None], cell_x[None, :, None]
        there = there[None, :, None]
        e = (f_block % E_BLOCKS * BLOCK_E + tl.arange(0, BLOCK_E))[None, None, :]
        o = (f_block // E_BLOCKS * BLOCK_O + tl.arange(0, BLOCK_O))[:, None, None]
        exists = (e < S[1]) & (o < OUT)
        total = tl.permute(tl.reshape(total, (BOX_H * BOX_W, BLOCK_O, BLOCK_E)), (1, 0, 2))
    beside = offset_of_phase(e, D[1], STEP[1])
    mask = there & exists
    if not WHOLE:
        mask = mask & (cell_x >= -beside) & (cell_x < W - beside)
    o += group * OUT
    if bias_ptr is not None:
        total += tl.load(bias_ptr + o.to(tl.int64) * bias_stride, mask=exists, other=0.0).to(tl.float32)
    if skip_ptr is not None:
        at = offset_of(image, cell_y, cell_x, skip_strides) + offset_beside(o, beside, skip_strides)
        total += tl.load(skip_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if CHANNELS_LAST and D[1] == 1 and GROUPS == 1:
        inner = f.to(tl.int64)  # as the next line, known to be consecutive
    else:
        inner = offset_beside(o, beside, output_strides)
    at = offset_of(image, cell_y, cell_x, output_strides) + inner
    tl.store(output_ptr + at, total.to(output_ptr.dtype.element_ty), mask=mask)


def plan(input, weight, bias, skip, output, stride, dilation, groups, window, channels_last, precision):
    """As the plan of deconv2d.py; `precision` is that of the products."""
    (n, channels, h, w), (_, o, *kernel), (H, W) = input.shape, weight.shape, output.shape[2:]
    c, s, left, step = channels // groups, stride[1], window[1], steps(stride, dilation)
    last_phase = (step[1] - 1) * dilation[1] + s // step[1] - 1  # its offset: see offset_of_phase
    first_column = -((last_phase - left) // s)
    rows, columns = triton.cdiv(H, stride[0]), (W - 1 + left) // s - first_column + 1
    taps = triton.cdiv(kernel[0], step[0])
    constants = config(
        input.dtype, precision, skip is not None, channels_last, c, o, taps, s, n * rows, columns, stride[0] * groups
    )
    block_f, block_e = constants["BLOCK_F"], constants["BLOCK_E"]
    if channels_last:
        f_blocks = triton.cdiv(s * o, block_f)
    else:
        f_blocks = triton.cdiv(s, block_e) * triton.cdiv(o, block_f // block_e)
    constants |= geometry(kernel, stride, dilation) | {
        "GROUPS": groups,
        "C": c,
        "OUT": o,
        "STEP": step,
        "CHANNELS_LAST": channels_last,
        "WHOLE": dilation[1] == 1 and left % s == 0 and W % s == 0,
        "PRECISION": precision,
    }
    column_blocks = triton.cdiv(columns, constants["BOX_W"])
    weight = weight.contiguous(memory_format=memory_format(channels_last))
    arguments = (input, weight, bias, skip, output, (n, h, w, H, W), window[:2])
    arguments += ((rows, columns, first_column, column_blocks, f_blocks),)
    arguments += (input.stride(), *strides(bias, 1), strides(skip, 4), output.stride())
    programs = triton.cdiv(n * rows, constants["BOX_H"]) * column_blocks * groups * stride[0] * f_blocks
    return deconv2d_kernel, (programs,), arguments, constants
