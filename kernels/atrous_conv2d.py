"""Computes atrous_conv2d, its gradients and atrous_pyramid  (fastseg/ops/atrous_conv2d.py).

    atrous_conv2d_forward.py      the product by tiles: forward, the input's gradient, the pyramid's branches at once
    atrous_conv2d_hopper.py       the same for sm_90, by boxes
    atrous_conv2d_gradients.py    the weight's gradient

Precision: products in the input's dtype (float32: IEEE, or TF32 if torch allows it for convolutions), sums in float32
in a fixed order, rounded once at the store.
"""

import functools
import math

import torch

from fastseg.kernels import atrous_conv2d_forward, atrous_conv2d_gradients, atrous_conv2d_hopper
from fastseg.kernels.launch import launch
from fastseg.kernels.products import added_up, precision
from fastseg.ops import atrous_conv2d_tiles
from fastseg.ops.atrous_conv2d_boxes import BOX_FIELDS
from fastseg.ops.atrous_conv2d_plan import axes, branches, turned


def convolution(input, outputs, sides):
    """(kernel, block) as atrous_conv2d_tiles.convolved wants them, for branches of so many outputs.

    sides: (rows, columns) of each, as in atrous_conv2d_plan.py.
    """
    capability = torch.cuda.get_device_capability(input.device) if input.is_cuda else (0, 0)
    if atrous_conv2d_hopper.suits(capability, input.dtype, input.shape[1], outputs, len(input), sides):
        return atrous_conv2d_hopper.convolution(input, outputs, sides)
    products = precision(input.dtype, torch.backends.cudnn.conv.fp32_precision)
    constants = atrous_conv2d_forward.config(input.dtype, products, input.shape[1], max(outputs))
    kernel = functools.partial(run, aligned=math.gcd(16, *outputs), constants=constants, precision=products)
    return kernel, constants["BLOCK_O"]


def run(input, weights, scale, bias, residual, tiles, stride, size, relu, *, aligned, constants, precision):
    output = atrous_conv2d_forward.new_output(input, size)
    arguments = input, weights, scale, bias, residual, output, tiles, stride, relu, aligned, constants, precision
    launch(input, *atrous_conv2d_forward.plan(*arguments))
    return output


def run_backward_weight(grad, input, parts, stride, taps, count, *, constants, precision):
    launched, sums = atrous_conv2d_gradients.plan(grad, input, parts, stride, taps, count, constants, precision)
    launch(grad, *launched)
    return added_up(sums, grad.dtype, False)


def atrous_conv2d(input, weight, scale, bias, residual, stride, padding, dilation, *rest):
    sides = (axes(input.shape[2:], weight.shape[2:], stride, padding, dilation),)
    kernel = convolution(input, weight.shape[:1], sides)
    return atrous_conv2d_tiles.forward(*kernel, input, weight, scale, bias, residual, stride, padding, dilation, *rest)


def atrous_conv2d_backward_input(grad, weight, stride, padding, dilation, groups, size, channels_last):
    of_grad, turned_padding = turned(size, weight.shape[2:], padding, dilation)
    sides = (axes(of_grad, weight.shape[2:], stride, turned_padding, dilation),)
    kernel = convolution(grad, weight.shape[1:2], sides)
    how = stride, padding, dilation, groups, size, channels_last
    return atrous_conv2d_tiles.backward_input(*kernel, grad, weight, *how)


def atrous_conv2d_backward_weight(grad, input, *rest):
    products = precision(grad.dtype, torch.backends.cudnn.conv.fp32_precision)
    constants = atrous_conv2d_gradients.config(grad.dtype, products, input.shape[1], grad.shape[1])
    kernel = functools.partial(run_backward_weight, constants=constants, precision=products)
    return atrous_conv2d_tiles.backward_weight(kernel, constants["BLOCK"], constants["DEPTH"], grad, input, *rest)


def atrous_pyramid(input, weights, scale, bias, dilations, *rest):
    sides = tuple(branches(input.shape[2:], weights, dilations))
    kernel = convolution(input, tuple(weight.shape[0] for weight in weights), sides)
    return atrous_conv2d_tiles.pyramid(*kernel, input, weights, scale, bias, dilations, *rest)


def launches():
    """(what, *launch) of each regime of the configs in each kernel, dtype and layout, for the compile gates."""

    def new(form, *shape):
        memory = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=getattr(torch, form.split()[0]), device="meta", memory_format=memory)

    def products(form):
        return "tf32" if form.endswith("tf32") or "float32" not in form else "ieee"

    def forward(form, channels, *outputs, fused=False):
        """A launch of so many branches."""
        input, total = new(form, 2, channels, 65, 65), sum(outputs)
        output, weights = new(form, 2, total, 65, 65), new(form, 9 * channels * total)
        scale, bias, residual = (new(form, total), new(form, total), output) if fused else (None, None, None)
        tiles = torch.empty(1, len(atrous_conv2d_tiles.TILE_FIELDS), dtype=torch.int32, device="meta")
        constants = atrous_conv2d_forward.config(input.dtype, products(form), channels, max(outputs))
        how = tiles, (1, 1), fused, math.gcd(16, *outputs), constants, products(form)
        what = f"{form} 2x{channels}x65x65 to {' + '.join(map(str, outputs))}{' fused' if fused else ''}"
        return what, *atrous_conv2d_forward.plan(input, weights, scale, bias, residual, output, *how)

    def backward_weight(form, channels, outputs):
        grad, input = new(form, 2, outputs, 65, 65), new(form, 2, channels, 65, 65)
        parts = torch.empty(1, len(atrous_conv2d_tiles.PART_FIELDS), dtype=torch.int32, device="meta")
        constants = atrous_conv2d_gradients.config(input.dtype, products(form), channels, outputs)
        launched, _ = atrous_conv2d_gradients.plan(grad, input, parts, (1, 1), 9, 2, constants, products(form))
        return f"{form} 2x{channels}x65x65 to {outputs}", *launched

    for form in ("float32", "float32 tf32", "float16", "bfloat16"):
        yield forward(form, 2048, 256, fused=form == "bfloat16")
        yield backward_weight(form, 2048, 256)
    yield forward("float16", 21, 19, fused=True)
    yield forward("bfloat16", 2048, 256, 256, 256, 256, fused=True)
    yield backward_weight("float16", 2048, 21)


def launches_sm_90():
    """Those of the kernel that no other GPU can run: its blocks, with and without what may follow the sums."""

    def case(dtype, channels, outputs, branches, box, block, fused):
        input = torch.empty((8, channels, 65, 65), dtype=dtype, device="meta", memory_format=torch.channels_last)
        total = outputs * branches
        output = torch.empty((8, total, 65, 65), dtype=dtype, device="meta", memory_format=torch.channels_last)
        scale, bias, residual = (input.new_empty(total), input.new_empty(total), output) if fused else (None,) * 3
        table = torch.empty(1, len(BOX_FIELDS), dtype=torch.int32, device="meta")
        # Boxes enough for a block of 256, or one.
        constants = atrous_conv2d_hopper.config(outputs, 132 if block == 256 else 1, 132)
        tensors = input, input.new_empty(9 * channels * total), scale, bias, residual, output, table
        what = f"{dtype} 8x{channels}x65x65 to {outputs}, branches {branches} box {box} block {block}"
        what = what.removeprefix("torch.") + (" fused" if fused else "")
        return what, *atrous_conv2d_hopper.plan(*tensors, fused, box, outputs, constants, 132)

    yield case(torch.bfloat16, 2048, 256, 1, (8, 4, 4), 256, False)
    yield case(torch.float16, 2048, 256, 4, (1, 8, 16), 256, True)
    yield case(torch.bfloat16, 2048, 256, 1, (2, 8, 8), 128, True)
    yield case(torch.float16, 64, 48, 1, (1, 1, 128), 64, True)
