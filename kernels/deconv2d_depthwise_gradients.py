"""The depthwise kernels of deconv2d's gradients: a group per channel.

Both sum products of a gradient and a number that many of them share, 2048 terms at a time in a block of channels,
input columns and taps kx. Memory bounds them: each gradient is read ceil(k / s)^2 times, once from DRAM, and as the
outputs of neighbouring pixels and taps are the same, the other times mostly from L1 and L2.
"""

import triton
import triton.language as tl

from fastseg.kernels.deconv2d_blocks import power_of_2
from fastseg.kernels.deconv2d_depthwise import channels_beside
from fastseg.kernels.deconv2d_geometry import geometry
from fastseg.kernels.products import empty, shared_out
from fastseg.ops.layout import is_channels_last


def backward_config(channels_last, channels, width, kernel):
    """Launch choices of both kernels: 16 terms a thread."""
    taps = power_of_2(kernel, 1, 64)
    block_c = power_of_2(channels, 1, 32) if channels_last else 1
    block_x = power_of_2(width, 1, 2048 // taps // block_c)
    if not channels_last:
        block_c = power_of_2(channels, 1, 2048 // taps // block_x)
    return {"BLOCK_C": block_c, "BLOCK_X": block_x, "TAPS": taps, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_depthwise_backward_input_kernel(
    grad_ptr,  # (N, C, H, W), any strides
    weight_ptr,  # (C, 1, *K), any strides
    grad_input_ptr,  # (N, C, h, w)
    sizes,
    window,
    grid,  # blocks of channels, of columns
    grad_strides,
    weight_strides,
    grad_input_strides,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    TAPS: tl.constexpr,
):
    """A program owns a block of channels and columns of one input row. Pixels share their outputs through L1."""
    batch, channels, h, w, H, W = sizes
    top, left = window
    c_blocks, column_blocks = grid
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    j = program // c_blocks % column_blocks * BLOCK_X + tl.arange(0, BLOCK_X)
    i = program // c_blocks // column_blocks % h
    image = (program // c_blocks // column_blocks // h).to(tl.int64)

    y = i * S[0] - top
    first_tap = tl.maximum(-y + D[0] - 1, 0) // D[0]
    last_tap = tl.minimum(tl.maximum(H - y + D[0] - 1, 0) // D[0], K[0])
    plane = grad_ptr + (image * grad_strides[0] + c.to(tl.int64) * grad_strides[1])[:, None, None]
    kernels = weight_ptr + (c.to(tl.int64) * weight_strides[0])[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_X, TAPS), tl.float32)
    for first in range(0, K[1], TAPS):
        kx = first + tl.arange(0, TAPS)
        x = (j * S[1] - left)[:, None] + (kx * D[1])[None, :]
        inside = (j < w)[:, None] & (kx < K[1])[None, :] & (x >= 0) & (x < W)
        columns = plane + (x.to(tl.int64) * grad_strides[3])[None]
        weights = kernels + (kx.to(tl.int64) * weight_strides[3])[None, :]
        for ky in range(first_tap, last_tap):
            at = (y + ky * D[0]).to(tl.int64) * grad_strides[2]
            grad = tl.load(columns + at, mask=(c < channels)[:, None, None] & inside[None], other=0.0)
            at = tl.cast(ky, tl.int64) * weight_strides[2]
            weight = tl.load(weights + at, mask=(c < channels)[:, None] & (kx < K[1])[None, :], other=0.0)
            total += grad.to(tl.float32) * weight.to(tl.float32)[:, None, :]

    at = image * grad_input_strides[0] + i.to(tl.int64) * grad_input_strides[2]
    at += (c.to(tl.int64) * grad_input_strides[1])[:, None] + (j.to(tl.int64) * grad_input_strides[3])[None, :]
    value = tl.sum(total, axis=2).to(grad_input_ptr.dtype.element_ty)
    tl.store(grad_input_ptr + at, value, mask=(c < channels)[:, None] & (j < w)[None, :])


@triton.jit(do_not_specialize=["sizes", "grid"])
def deconv2d_depthwise_backward_weight_kernel(
    grad_ptr,  # (N, C, H, W), any strides
    input_ptr,  # (N, C, h, w), any strides
    grad_weight_ptr,  # (PARTS, C, *K), dense
    sizes,
    window,
    grid,  # blocks of channels, of kx, parts, rows of input in a part
    grad_strides,
    input_strides,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    TAPS: tl.constexpr,
):
    """A program owns a block of channels and kx of one ky, for a part of the input's rows, of all images."""
    batch, channels, h, w, H, W = sizes
    top, left = window
    c_blocks, tap_blocks, parts, part_rows = grid
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    kx = program // c_blocks % tap_blocks * TAPS + tl.arange(0, TAPS)
    ky = program // c_blocks // tap_blocks % K[0]
    part = program // c_blocks // tap_blocks // K[0]

    channel = c.to(tl.int64)
    total = tl.zeros((BLOCK_C, BLOCK_X, TAPS), tl.float32)
    for row in range(part * part_rows, tl.minimum((part + 1) * part_rows, batch * h)):
        image = (row // h).to(tl.int64)
        i = row % h
        y = i * S[0] + ky * D[0] - top
        if (y >= 0) & (y < H):
            plane = image * grad_strides[0] + y.to(tl.int64) * grad_strides[2] + channel * grad_strides[1]
            pixels = image * input_strides[0] + i.to(tl.int64) * input_strides[2] + channel * input_strides[1]
            for first in range(0, w, BLOCK_X):
                j = first + tl.arange(0, BLOCK_X)
                x = (j * S[1] - left)[:, None] + (kx * D[1])[None, :]
                inside = (j < w)[:, None] & (kx < K[1])[None, :] & (x >= 0) & (x < W)
                grad = tl.load(
                    grad_ptr + plane[:, None, None] + (x.to(tl.int64) * grad_strides[3])[None],
                    mask=(c < channels)[:, None, None] & inside[None],
                    other=0.0,
                )
                value = tl.load(
                    input_ptr + pixels[:, None] + (j.to(tl.int64) * input_strides[3])[None, :],
                    mask=(c < channels)[:, None] & (j < w)[None, :],
                    other=0.0,
                )
                total += grad.to(tl.float32) * value.to(tl.float32)[:, :, None]

    at = (part * channels + c).to(tl.int64) * (K[0] * K[1]) + ky * K[1]
    mask = (c < channels)[:, None] & (kx < K[1])[None, :]
    tl.store(grad_weight_ptr + at[:, None] + kx[None, :], tl.sum(total, axis=1), mask=mask)


def backward_input_plan(grad, weight, stride, dilation, groups, window, size, channels_last, precision):
    (n, c, H, W), (h, w), kernel, beside = grad.shape, size, weight.shape[2:], is_channels_last(grad)
    constants = backward_config(beside, c, w, kernel[1])
    blocks = triton.cdiv(c, constants["BLOCK_C"]), triton.cdiv(w, constants["BLOCK_X"])
    result = empty(1, (n, c, h, w), grad, channels_last)
    weight = channels_beside(weight) if beside else weight
    arguments = (grad, weight, result, (n, c, h, w, H, W), window[:2], blocks)
    arguments += (grad.stride(), weight.stride(), result[0].stride())
    constants |= geometry(kernel, stride, dilation)
    return (deconv2d_depthwise_backward_input_kernel, (n * h * blocks[0] * blocks[1],), arguments, constants), result


def backward_weight_plan(grad, input, stride, dilation, groups, window, kernel, precision):
    (n, c, h, w), (H, W), beside = input.shape, grad.shape[2:], is_channels_last(grad)
    constants = backward_config(beside, c, w, kernel[1])
    blocks = triton.cdiv(c, constants["BLOCK_C"]), triton.cdiv(kernel[1], constants["TAPS"])
    programs = blocks[0] * blocks[1] * kernel[0]
    parts, part_rows = shared_out(n * h, programs)
    result = empty(parts, (c, 1, *kernel), grad, False)
    arguments = (grad, input, result, (n, c, h, w, H, W), window[:2], (*blocks, parts, part_rows))
    arguments += (grad.stride(), input.stride())
    constants |= geometry(kernel, stride, dilation)
    return (deconv2d_depthwise_backward_weight_kernel, (programs * parts,), arguments, constants), result
