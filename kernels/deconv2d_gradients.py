"""The products of deconv2d's gradients.

    backward_input   [input pixels (n, i, j)] x [taps and channels (ky, kx, o)] x [c]
    backward_weight  [taps and channels (ky, kx, o)] x [input pixels (n, i, j)] x [c]
A program owns a block of pixels and c, or of (ky, kx, o) and c. It reads each gradient ceil(k / s)^2 times: once from
DRAM, then from L2. Where results are few, PARTS programs sum a share each, and torch adds up the shares.
"""

import triton
import triton.language as tl

from fastseg.kernels.deconv2d_blocks import box, pixels_of, power_of_2
from fastseg.kernels.deconv2d_geometry import geometry, offset_of
from fastseg.kernels.products import empty, shared_out
from fastseg.ops.layout import is_channels_last, memory_format


def backward_config(precision, channels):
    """Launch choices of both kernels. Blocks have one size on the long axes, and on that of c, which may be short, what
    fits."""
    longest = 64 if precision == "ieee" else 128  # IEEE products in 64 x 128 spill
    block_n = power_of_2(channels, 16, longest)
    return {
        "BLOCK_M": 128 if block_n < longest else 64,
        "BLOCK_N": block_n,
        "BLOCK_K": 16 if precision == "ieee" else 32,
        "num_warps": 8,
        "num_stages": 3,
        "maxnreg": 255 if precision == "ieee" else 128,  # left alone, ptxas aims at 80 and spills a little
        "enable_fp_fusion": True,
    }


@triton.jit
def taps_of(
    index, strides, OUT: tl.constexpr, K: tl.constexpr, D: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLAT: tl.constexpr
):
    """Of numbers in a weight's row (OUT, *K), as they lie in memory: (ky D, kx D, how far apart their gradients are).

    FLAT: gradients of one ky lie in memory as the weight does.
    """
    if CHANNELS_LAST:
        y = index // (K[1] * OUT) * D[0]
        x = index // OUT % K[1] * D[1]
        o = index % OUT
    else:
        y = index // K[1] % K[0] * D[0]
        x = index % K[1] * D[1]
        o = index // (K[0] * K[1])
    if FLAT:
        offset = y.to(tl.int64) * strides[2] + index % (K[1] * OUT)
    else:
        offset = o.to(tl.int64) * strides[1] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
    return y, x, offset


@triton.jit
def load_patches(grad_ptr, strides, image, y, x, mask, taps, H, W, WHOLE: tl.constexpr):
    """(pixels, taps): the gradients of what pixels reach, whose first output is (y, x). 0 outside of the window."""
    tap_y, tap_x, tap = taps
    if not WHOLE:
        out_y = y[:, None] + tap_y[None, :]
        out_x = x[:, None] + tap_x[None, :]
        mask = mask & (out_y >= 0) & (out_y < H) & (out_x >= 0) & (out_x < W)
    return tl.load(grad_ptr + offset_of(image, y, x, strides)[:, None] + tap[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_backward_input_kernel(
    grad_ptr,  # (N, GROUPS OUT, H, W), any strides
    weight_ptr,  # (GROUPS C, OUT, *K), dense, channels_last or not
    grad_input_ptr,  # (PARTS, N, GROUPS C, h, w)
    sizes,
    window,
    grid,  # blocks of columns, blocks of c, parts, blocks of (ky, kx, o) in a part
    grad_strides,
    grad_input_strides,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # of the weight, as of the gradient
    FLAT: tl.constexpr,
    WHOLE: tl.constexpr,  # the window has all that the input reaches
    PRECISION: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    batch, h, w, H, W = sizes
    top, left = window
    column_blocks, c_blocks, parts, part_blocks = grid
    ROW: tl.constexpr = OUT * K[0] * K[1]
    program = tl.program_id(0)
    c_block = program % c_blocks
    part = program // c_blocks % parts
    group = program // c_blocks // parts % GROUPS
    tile = program // c_blocks // parts // GROUPS

    image, i, j = pixels_of(tile, h, column_blocks, BOX_H, BOX_W, False)
    there = (image < batch) & (j < w)
    c = c_block * BLOCK_N + tl.arange(0, BLOCK_N)
    grad_ptr += (group * OUT).to(tl.int64) * grad_strides[1]
    weight_rows = weight_ptr + (group * C + c).to(tl.int64)[:, None] * ROW
    total = tl.zeros((BOX_H * BOX_W, BLOCK_N), tl.float32)
    begin = part * part_blocks * BLOCK_K
    for first in range(begin, tl.minimum(begin + part_blocks * BLOCK_K, ROW), BLOCK_K):
        index = first + tl.arange(0, BLOCK_K)
        taps = taps_of(index, grad_strides, OUT, K, D, CHANNELS_LAST, FLAT)
        mask = there[:, None] & (index < ROW)[None, :]
        grad = load_patches(grad_ptr, grad_strides, image, i * S[0] - top, j * S[1] - left, mask, taps, H, W, WHOLE)
        weight = tl.load(weight_rows + index[None, :], mask=(c < C)[:, None] & (index < ROW)[None, :], other=0.0)
        total = tl.dot(grad, tl.trans(weight), total, input_precision=PRECISION)

    at = part * grad_input_strides[0] + image * grad_input_strides[1]
    at += i.to(tl.int64) * grad_input_strides[3] + j.to(tl.int64) * grad_input_strides[4]
    at = at[:, None] + ((group * C + c).to(tl.int64) * grad_input_strides[2])[None, :]
    mask = there[:, None] & (c < C)[None, :]
    tl.store(grad_input_ptr + at, total.to(grad_input_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_backward_weight_kernel(
    grad_ptr,  # (N, GROUPS OUT, H, W), any strides
    input_ptr,  # (N, GROUPS C, h, w), any strides
    grad_weight_ptr,  # (PARTS, GROUPS C, OUT, *K), dense, channels_last or not
    sizes,
    window,
    grid,  # blocks of columns, of c, of (ky, kx, o), parts, boxes of pixels in a part, in all
    grad_strides,
    input_strides,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # of the result, as of the gradient
    FLAT: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    batch, h, w, H, W = sizes
    top, left = window
    column_blocks, c_blocks, tap_blocks, parts, part_boxes, boxes = grid
    ROW: tl.constexpr = OUT * K[0] * K[1]
    program = tl.program_id(0)
    c_block = program % c_blocks
    tap_block = program // c_blocks % tap_blocks
    part = program // c_blocks // tap_blocks % parts
    group = program // c_blocks // tap_blocks // parts

    index = tap_block * BLOCK_M + tl.arange(0, BLOCK_M)
    taps = taps_of(index, grad_strides, OUT, K, D, CHANNELS_LAST, FLAT)
    c = c_block * BLOCK_N + tl.arange(0, BLOCK_N)
    grad_ptr += (group * OUT).to(tl.int64) * grad_strides[1]
    channel = (group * C + c).to(tl.int64) * input_strides[1]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(part * part_boxes, tl.minimum((part + 1) * part_boxes, boxes)):
        image, i, j = pixels_of(tile, h, column_blocks, BOX_H, BOX_W, False)
        there = (image < batch) & (j < w)
        mask = there[:, None] & (index < ROW)[None, :]
        grad = load_patches(grad_ptr, grad_strides, image, i * S[0] - top, j * S[1] - left, mask, taps, H, W, WHOLE)
        pixel = offset_of(image, i, j, input_strides)
        if CHANNELS_LAST:
            mask = there[:, None] & (c < C)[None, :]
            x = tl.load(input_ptr + pixel[:, None] + channel[None, :], mask=mask, other=0.0)
        else:
            mask = there[None, :] & (c < C)[:, None]
            x = tl.trans(tl.load(input_ptr + pixel[None, :] + channel[:, None], mask=mask, other=0.0))
        total = tl.dot(tl.trans(grad), x, total, input_precision=PRECISION)

    row = (part * (GROUPS * C) + group * C + c).to(tl.int64) * ROW
    value = tl.trans(total).to(grad_weight_ptr.dtype.element_ty)
    mask = (c < C)[:, None] & (index < ROW)[None, :]
    tl.store(grad_weight_ptr + row[:, None] + index[None, :], value, mask=mask)


def patches(grad, kernel, stride, dilation, groups, c, window, size, precision):
    """Constants of both kernels."""
    beside, o = is_channels_last(grad), grad.shape[1] // groups
    full = reach(size, kernel, stride, dilation)
    constants = backward_config(precision, c) | geometry(kernel, stride, dilation)
    return constants | {
        "GROUPS": groups,
        "C": c,
        "OUT": o,
        "CHANNELS_LAST": beside,
        "FLAT": beside and groups == 1 and dilation[1] == 1 and grad.stride(3) == o,
        "WHOLE": tuple(window[:2]) == (0, 0) and window[2] >= full[0] and window[3] >= full[1],
        "PRECISION": precision,
    }


def reach(size, kernel, stride, dilation):
    """The full deconvolution's height and width."""
    return tuple((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))


def backward_input_plan(grad, weight, stride, dilation, groups, window, size, channels_last, precision):
    """(launch as of plan, its result (PARTS, N, C, h, w)): the sum over the parts is the gradient."""
    (n, _, H, W), (h, w), (channels, _, *kernel) = grad.shape, size, weight.shape
    c = channels // groups
    constants = patches(grad, kernel, stride, dilation, groups, c, window, size, precision)
    constants |= box(n * h, w, constants.pop("BLOCK_M"))
    column_blocks, c_blocks = triton.cdiv(w, constants["BOX_W"]), triton.cdiv(c, constants["BLOCK_N"])
    programs = triton.cdiv(n * h, constants["BOX_H"]) * column_blocks * groups * c_blocks
    parts, part_blocks = shared_out(triton.cdiv(weight[0].numel(), constants["BLOCK_K"]), max(programs, 1))
    result = empty(parts, (n, channels, h, w), grad, channels_last)
    weight = weight.contiguous(memory_format=memory_format(constants["CHANNELS_LAST"]))
    arguments = (grad, weight, result, (n, h, w, H, W), window[:2], (column_blocks, c_blocks, parts, part_blocks))
    arguments += (grad.stride(), result.stride())
    return (deconv2d_backward_input_kernel, (programs * parts,), arguments, constants), result


def backward_weight_plan(grad, input, stride, dilation, groups, window, kernel, precision):
    """(launch, its result (PARTS, C, O, *kernel)), channels_last inside if the gradient is."""
    (n, channels, h, w), (_, outputs, H, W) = input.shape, grad.shape
    c, o = channels // groups, outputs // groups
    constants = patches(grad, kernel, stride, dilation, groups, c, window, (h, w), precision)
    constants |= box(n * h, w, constants.pop("BLOCK_K"))
    column_blocks = triton.cdiv(w, constants["BOX_W"])
    boxes = triton.cdiv(n * h, constants["BOX_H"]) * column_blocks
    blocks = triton.cdiv(c, constants["BLOCK_N"]), triton.cdiv(o * kernel[0] * kernel[1], constants["BLOCK_M"])
    programs = groups * blocks[0] * blocks[1]
    parts, part_boxes = shared_out(boxes, programs)
    result = empty(parts, (channels, o, *kernel), grad, constants["CHANNELS_LAST"])
    arguments = (grad, input, result, (n, h, w, H, W), window[:2])
    arguments += ((column_blocks, *blocks, parts, part_boxes, boxes), grad.stride(), input.stride())
    return (deconv2d_backward_weight_kernel, (programs * parts,), arguments, constants), result
