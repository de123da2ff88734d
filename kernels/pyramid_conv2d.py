"""Computes the convolution over an input and priors, and the slab's gradient  (fastseg/ops/pyramid_conv2d.py).

Both are products of matrices of which one is never made, in tiles (names as in the ops file):
    forward         [pixels of an image (y, x)] x [taps and channels (a, b, c), then (s, a, b)] x [o]
    backward_slab   [(s, a, b)] x [pixels of an image (y, x)] x [o]
The interpolation weights M, of pixels and (s, a, b), are computed in registers, from sizes alone.
Forward: a program owns a block of pixels of one image and a block of o. It reads each input kh kw times: once from
DRAM, then from L2; the programs beside it, of other o, read the same. The weights stay in L2, and so does the slab.
Backward: a program owns a block of (s, a, b) and of o. Where those are few, PARTS programs sum some pixels each, and
torch adds up the parts. It reads each gradient once for every block of (s, a, b): from L2 but the first time.
Inputs, weights and gradients have their channels beside one another; others are copied so first, which takes less time
than reading them kh kw times would lose.
Precision: products in the input's dtype (float32: IEEE, or TF32 if torch allows it for matmul), the interpolation
weights rounded to it; sums in float32 in a fixed order, rounded once at the store.
"""

import torch
import triton
import triton.language as tl

from fastseg.kernels.bilinear import scale
from fastseg.kernels.launch import launch
from fastseg.kernels.products import precision, shared_out
from fastseg.kernels.pyramid_conv2d_interpolation import interpolation
from fastseg.ops.layout import memory_format
from fastseg.ops.pyramid_pool import pairs

MULTIPROCESSORS = 132  # of an H200


def config(dtype, precision, channels, pixels, outputs, images):
    """Launch choices of the forward kernel: the largest blocks that leave no multiprocessor without.

    IEEE products (of float32) are no work for tensor cores: a thread holds BLOCK_K numbers of each of its rows and
    columns, so that it can have few. Nor can it have many where channels are loaded one by one, each by an address. Of
    the slab, BLOCK_S are few as well: a thread needs 8 numbers for each of its rows.
    """
    if precision == "ieee":
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "BLOCK_S": 16, **warps(8)}
    widest = 256 if dtype.itemsize == 2 else 128
    for block_m, block_n in ((128, 256), (128, 128), (64, 128), (64, 64)):
        programs = images * triton.cdiv(pixels, block_m) * triton.cdiv(outputs, block_n)
        if programs >= MULTIPROCESSORS and outputs > block_n // 2 and block_n <= widest:
            break
    block_k = (128 if channels % 16 == 0 else 64) // dtype.itemsize
    blocks = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "BLOCK_S": 16 if block_n == 256 else 64 // dtype.itemsize,
    }
    return blocks | warps(8 if block_m == 128 else 4)


def backward_config(dtype, precision):
    """Launch choices of the slab's gradient."""
    if precision == "ieee":
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, **warps(8)}
    return {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64 // dtype.itemsize, **warps(8)}


def warps(count):
    return {"num_warps": count, "num_stages": 3, "maxnreg": 255, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["sizes", "padding", "grid"])
def pyramid_conv2d_kernel(
    input_ptr,  # (N, C, H, W), channels beside one another
    weight_ptr,  # (O, C, *KERNEL), the same
    slab_ptr,  # (N, ROWS, O)
    bias_ptr,  # (O,), or None
    output_ptr,  # (N, O, H', W'), dense
    sizes,  # H, W, H', W'
    padding,
    scales,  # of rows and columns, of every bin
    grid,  # blocks of pixels, of o, of c
    channels,
    outputs,
    input_strides,  # n, h, w
    weight_strides,  # o, a, b
    bias_stride,
    output_strides,  # n, o, pixel
    BINS: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,  # of the slab: (s, a, b)
    ALIGN_CORNERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,  # of the slab's rows
):
    H, W, out_h, out_w = sizes
    pixel_blocks, o_blocks, c_blocks = grid
    # One grid axis (the others end at 65535): blocks of o fastest, which read the same inputs.
    program = tl.program_id(0)
    o_block = program % o_blocks
    pixel_block = program // o_blocks % pixel_blocks
    image = (program // o_blocks // pixel_blocks).to(tl.int64)

    pixel = pixel_block * BLOCK_M + tl.arange(0, BLOCK_M)
    y, x = pixel // out_w, pixel % out_w
    o = o_block * BLOCK_N + tl.arange(0, BLOCK_N)

    # The priors first: the addresses of the taps then need no registers yet.
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    slab_ptr += image * ROWS * outputs
    for first in range(0, ROWS, BLOCK_S):
        row = first + tl.arange(0, BLOCK_S)
        matrix = interpolation(y[:, None], x[:, None], row[None, :], H, W, padding, scales, BINS, KERNEL, ALIGN_CORNERS)
        mask = (row < ROWS)[:, None] & (o < outputs)[None, :]
        slab = tl.load(slab_ptr + row.to(tl.int64)[:, None] * outputs + o[None, :], mask=mask, other=0.0)
        total = tl.dot(matrix.to(slab.dtype), slab, total, input_precision=PRECISION)

    # Of tap (0, 0); past the last pixel, where no tap is inside.
    in_y, in_x = tl.where(pixel < out_h * out_w, y - padding[0], H), x - padding[1]
    corner = in_y.to(tl.int64) * input_strides[1] + in_x.to(tl.int64) * input_strides[2]
    inputs = input_ptr + image * input_strides[0] + corner[:, None]
    # Past the last output, of which nothing is stored, the last one's weights: cheaper than a mask.
    weights = weight_ptr + (tl.minimum(o, outputs - 1).to(tl.int64) * weight_strides[0])[:, None]
    for block in range(0, KERNEL[0] * KERNEL[1] * c_blocks):
        tap = block // c_blocks
        a, b, c = tap // KERNEL[1], tap % KERNEL[1], block % c_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (in_y + a >= 0) & (in_y + a < H) & (in_x + b >= 0) & (in_x + b < W)
        offset = a.to(tl.int64) * input_strides[1] + b.to(tl.int64) * input_strides[2]
        values = tl.load(inputs + offset + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        offset = a.to(tl.int64) * weight_strides[1] + b.to(tl.int64) * weight_strides[2]
        weight = tl.load(weights + offset + c[None, :], mask=(c < channels)[None, :], other=0.0)
        total = tl.dot(values, tl.trans(weight), total, input_precision=PRECISION)

    if bias_ptr is not None:
        total += tl.load(bias_ptr + o * bias_stride, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    to = image * output_strides[0] + pixel.to(tl.int64)[:, None] * output_strides[2]
    to += o.to(tl.int64)[None, :] * output_strides[1]
    mask = (pixel < out_h * out_w)[:, None] & (o < outputs)[None, :]
    tl.store(output_ptr + to, total.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["sizes", "padding", "grid"])
def pyramid_conv2d_backward_slab_kernel(
    grad_ptr,  # (N, O, H', W'), channels beside one another
    grad_slab_ptr,  # (PARTS, N, ROWS, O)
    sizes,
    padding,
    scales,
    grid,  # N, blocks of (s, a, b), of o, parts, blocks of pixels in a part
    outputs,
    grad_strides,  # n, h, w
    BINS: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    H, W, out_h, out_w = sizes
    images, row_blocks, o_blocks, parts, part_blocks = grid
    program = tl.program_id(0)
    o_block = program % o_blocks
    row_block = program // o_blocks % row_blocks
    part = program // o_blocks // row_blocks % parts
    image = (program // o_blocks // row_blocks // parts).to(tl.int64)

    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    o = o_block * BLOCK_N + tl.arange(0, BLOCK_N)
    grads = grad_ptr + image * grad_strides[0] + o[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(0, part_blocks):
        pixel = (part * part_blocks + block) * BLOCK_K + tl.arange(0, BLOCK_K)
        y, x = pixel // out_w, pixel % out_w
        offset = y.to(tl.int64) * grad_strides[1] + x.to(tl.int64) * grad_strides[2]
        mask = (pixel < out_h * out_w)[:, None] & (o < outputs)[None, :]
        grad = tl.load(grads + offset[:, None], mask=mask, other=0.0)
        matrix = interpolation(y[None, :], x[None, :], row[:, None], H, W, padding, scales, BINS, KERNEL, ALIGN_CORNERS)
        total = tl.dot(matrix.to(grad.dtype), grad, total, input_precision=PRECISION)

    to = ((part * images + image) * ROWS + row)[:, None] * outputs + o[None, :]
    mask = (row < ROWS)[:, None] & (o < outputs)[None, :]
    tl.store(grad_slab_ptr + to, total.to(grad_slab_ptr.dtype.element_ty), mask=mask)


def channels_beside(x):
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def geometry(bins, kernel, size, align_corners, precision):
    """(scales, constants) of both kernels."""
    scales = tuple(scale(n, size[axis], align_corners) for pair in pairs(bins) for axis, n in enumerate(pair))
    rows = sum(h * w for h, w in pairs(bins)) * kernel[0] * kernel[1]
    constants = {"BINS": tuple(bins), "KERNEL": tuple(kernel), "ROWS": rows}
    return scales, constants | {"ALIGN_CORNERS": align_corners, "PRECISION": precision}


def apart(x):
    """The strides of all axes but that of the channels."""
    return x.stride(0), x.stride(2), x.stride(3)


def plan(input, weight, slab, bias, output, bins, padding, align_corners, precision):
    """(kernel, grid, its arguments, its constants) of the forward launch; tensors may be on the meta device."""
    (n, c, h, w), (outputs, _, *kernel), out_size = input.shape, weight.shape, output.shape[2:]
    pixels = out_size[0] * out_size[1]
    constants = config(input.dtype, precision, c, pixels, outputs, n)
    blocks = [(pixels, "BLOCK_M"), (outputs, "BLOCK_N"), (c, "BLOCK_K")]
    grid = tuple(triton.cdiv(length, constants[block]) for length, block in blocks)
    scales, fixed = geometry(bins, kernel, (h, w), align_corners, precision)
    input, weight = channels_beside(input), channels_beside(weight)
    arguments = input, weight, slab, bias, output, (h, w, *out_size), tuple(padding), scales, grid, c, outputs
    arguments += apart(input), apart(weight), 0 if bias is None else bias.stride(0)
    arguments += ((output.stride(0), output.stride(1), output.stride(3)),)
    return pyramid_conv2d_kernel, (n * grid[0] * grid[1],), arguments, constants | fixed


def backward_slab_plan(grad, bins, kernel, padding, size, align_corners, precision):
    """(launch as of plan, its result (PARTS, N, S, kh, kw, O)): the sum over the parts is the gradient."""
    n, outputs, *out_size = grad.shape
    constants = backward_config(grad.dtype, precision)
    scales, fixed = geometry(bins, kernel, size, align_corners, precision)
    pixels = out_size[0] * out_size[1]
    lengths = (fixed["ROWS"], "BLOCK_M"), (outputs, "BLOCK_N"), (pixels, "BLOCK_K")
    row_blocks, o_blocks, blocks = (triton.cdiv(length, constants[block]) for length, block in lengths)
    parts, part_blocks = shared_out(blocks, n * row_blocks * o_blocks)
    shape = parts, n, fixed["ROWS"] // (kernel[0] * kernel[1]), *kernel, outputs
    result = torch.empty(shape, dtype=grad.dtype if parts == 1 else torch.float32, device=grad.device)
    grad = channels_beside(grad)
    grid = n, row_blocks, o_blocks, parts, part_blocks
    arguments = grad, result, (*size, *out_size), tuple(padding), scales, grid, outputs, apart(grad)
    programs = n * row_blocks * o_blocks * parts
    return (pyramid_conv2d_backward_slab_kernel, (programs,), arguments, constants | fixed), result


def pyramid_conv2d(input, weight, slab, bias, bins, padding, align_corners, channels_last):
    size = (n + 2 * p - k + 1 for n, p, k in zip(input.shape[2:], padding, weight.shape[2:], strict=True))
    shape, layout = (input.shape[0], weight.shape[0], *size), memory_format(channels_last)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    how = bins, padding, align_corners, precision(input.dtype)
    launch(input, *plan(input, weight, slab, bias, output, *how))
    return output


def pyramid_conv2d_backward_slab(grad, bins, kernel, padding, size, align_corners):
    launched, result = backward_slab_plan(grad, bins, kernel, padding, size, align_corners, precision(grad.dtype))
    launch(grad, *launched)
    return result[0] if len(result) == 1 else result.sum(0).to(grad.dtype)


def launches():
    """(what, *launch) of each choice of blocks, dtype and layout, for the compile gates."""

    def case(
        form, shape, outputs, bins, kernel=(3, 3), padding=(1, 1), align_corners=False, biased=False, gradient=False
    ):
        layout, dtype, *tf32 = form.split()
        memory, dtype = memory_format(layout == "channels_last"), getattr(torch, dtype)

        def new(*shape):
            return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory if len(shape) == 4 else None)

        size = [n + 2 * p - k + 1 for n, p, k in zip(shape[2:], padding, kernel, strict=True)]
        input, weight, output = new(*shape), new(outputs, shape[1], *kernel), new(shape[0], outputs, *size)
        slab = new(shape[0], sum(h * w for h, w in pairs(bins)), *kernel, outputs)
        products = "tf32" if tf32 else precision(dtype)
        what = f"{form} {'x'.join(map(str, shape))} to {outputs}, {bins} {kernel}{' bias' if biased else ''}"
        how = bins, padding, align_corners, products
        yield what, *plan(input, weight, slab, new(outputs) if biased else None, output, *how)
        if gradient:
            yield what, *backward_slab_plan(output, bins, kernel, padding, shape[2:], align_corners, products)[0]

    def pyramid(form, images, side, gradient=False):
        return case(form, (images, 2048, side, side), 512, (1, 1, 2, 2, 3, 3, 6, 6), gradient=gradient)

    yield from pyramid("NCHW float32", 1, 60, gradient=True)
    yield from pyramid("channels_last float32 tf32", 1, 60, gradient=True)
    yield from pyramid("channels_last bfloat16", 16, 60, gradient=True)
    yield from pyramid("NCHW float16", 2, 60)
    yield from pyramid("channels_last bfloat16", 1, 60)
    yield from pyramid("NCHW float16", 1, 30)
    yield from case("NCHW bfloat16", (2, 37, 9, 11), 21, (1, 3), (1, 3), (0, 2), align_corners=True, biased=True)
