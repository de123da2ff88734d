"""Computes the deconvolution of an input, and its gradients  (fastseg/ops/deconv2d.py).

Each of the three ops is one product of matrices that are never made, in tiles (names as in the ops file; c and o are
the C and O channels of a group):
    forward          [input pixels (n, a, b)] x [taps (ty, tx, c)] x [phases of a row and channels (e, o)]
    backward_input   [input pixels (n, i, j)] x [taps and channels (ky, kx, o)] x [c]
    backward_weight  [taps and channels (ky, kx, o)] x [input pixels (n, i, j)] x [c]
Depthwise (C = O = 1) there are no products of matrices, and memory bounds all three: they have kernels of their own.

    deconv2d_forward.py, deconv2d_gradients.py                     the products
    deconv2d_depthwise.py, deconv2d_depthwise_gradients.py         the same with a group per channel
    deconv2d_geometry.py, deconv2d_blocks.py                       what they share

Precision: products in the input's dtype (float32: IEEE, or TF32 if torch allows it for matmul), sums in float32 in a
fixed order, rounded once at the store. A tap outside of the kernel adds nothing, even where the input is NaN. Inputs
and gradients outside of their maps count as 0 in a product: times an infinite weight, that is NaN.
"""

import torch

from fastseg.kernels import deconv2d_depthwise, deconv2d_depthwise_gradients, deconv2d_forward, deconv2d_gradients
from fastseg.kernels.launch import launch
from fastseg.kernels.products import added_up, precision
from fastseg.ops.layout import memory_format


def plan(input, weight, bias, skip, output, stride, dilation, groups, *how):
    """(kernel, grid, its arguments, its constants) of the forward launch; tensors may be on the meta device."""
    depthwise = weight.shape[:2] == (groups, 1)
    of = deconv2d_depthwise if depthwise else deconv2d_forward
    return of.plan(input, weight, bias, skip, output, stride, dilation, groups, *how)


def backward_input_plan(grad, weight, stride, dilation, groups, *how):
    """(launch as of plan, its sums (PARTS, N, C, h, w)): what they add up to is the gradient."""
    depthwise = weight.shape[:2] == (groups, 1)
    of = deconv2d_depthwise_gradients if depthwise else deconv2d_gradients
    return of.backward_input_plan(grad, weight, stride, dilation, groups, *how)


def backward_weight_plan(grad, input, stride, dilation, groups, *how):
    """(launch as of plan, its sums (PARTS, C, O, *kernel))."""
    depthwise = input.shape[1] == grad.shape[1] == groups
    of = deconv2d_depthwise_gradients if depthwise else deconv2d_gradients
    return of.backward_weight_plan(grad, input, stride, dilation, groups, *how)


def deconv2d(input, weight, bias, skip, stride, dilation, groups, window, channels_last):
    shape = input.shape[0], weight.shape[1] * groups, *window[2:]
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(channels_last))
    how = stride, dilation, groups, window, channels_last, precision(input.dtype)
    launch(input, *plan(input, weight, bias, skip, output, *how))
    return output


def deconv2d_backward_input(grad, weight, stride, dilation, groups, window, size, channels_last):
    how = stride, dilation, groups, window, size, channels_last, precision(grad.dtype)
    launched, sums = backward_input_plan(grad, weight, *how)
    launch(grad, *launched)
    return added_up(sums, grad.dtype, channels_last)


def deconv2d_backward_weight(grad, input, stride, dilation, groups, window, kernel):
    how = stride, dilation, groups, window, kernel, precision(grad.dtype)
    launched, sums = backward_weight_plan(grad, input, *how)
    launch(grad, *launched)
    return added_up(sums, grad.dtype, False)


def launches():
    """(what, *launch) of each regime of the configs in each kernel, dtype and layout, for the compile gates."""

    def case(form, channels, kernel, stride, size, batch=1, outputs=None, groups=1, dilation=1, crop=0, added=False):
        """The launches of the forward op and of both gradients."""
        layout, dtype, *tf32 = form.split()
        channels_last, outputs = layout == "channels_last", outputs or channels
        side = (size - 1) * stride + (kernel - 1) * dilation + 1 - 2 * crop

        def new(*shape):
            memory = memory_format(channels_last and len(shape) == 4)
            return torch.empty(shape, dtype=getattr(torch, dtype), device="meta", memory_format=memory)

        input, weight = new(batch, channels, size, size), new(channels, outputs // groups, kernel, kernel)
        output, bias, skip = new(batch, outputs, side, side), None, None
        if added:
            bias, skip = new(outputs), new(batch, outputs, side + 2, side + 2)[:, :, 1:-1, 1:-1]
        how = (stride, stride), (dilation, dilation), groups, (crop, crop, side, side)
        products = "tf32" if tf32 or input.dtype != torch.float32 else "ieee"
        what = f"{form} {batch}x{channels}x{size}x{size} to {outputs}, k{kernel} s{stride} d{dilation} groups {groups}"
        what += f" crop {crop}{' bias skip' if added else ''}"
        return [
            (what, *plan(input, weight, bias, skip, output, *how, channels_last, products)),
            (what, *backward_input_plan(output, weight, *how, (size, size), channels_last, products)[0]),
            (what, *backward_weight_plan(output, input, *how, (kernel, kernel), products)[0]),
        ]

    for layout in ("NCHW", "channels_last"):
        for form in (f"{layout} float32", f"{layout} float16"):
            yield from case(form, 21, 64, 32, 16)
        yield from case(f"{layout} float32", 21, 4, 2, 34, crop=5, added=True)
    yield from case("channels_last bfloat16", 21, 4, 2, 34, crop=5, added=True)
    yield from case("channels_last float32 tf32", 21, 16, 8, 64)
    yield case("NCHW bfloat16", 21, 4, 2, 34, crop=5, added=True)[0]
    yield case("NCHW float32 tf32", 21, 16, 8, 64)[0]
    for form in ("NCHW float32", "channels_last float16"):
        yield case(form, 21, 16, 8, 64)[0]
        yield case(form, 21, 63, 32, 16)[0]
        yield case(form, 21, 64, 32, 16, batch=16, crop=19, added=True)[0]
        yield from case(form, 256, 4, 2, 32, batch=2)
        yield from case(form, 64, 3, 1, 8, outputs=24, groups=2, dilation=2)
        yield from case(form, 21, 64, 32, 16, groups=21)
    for form in ("NCHW bfloat16", "channels_last float32"):
        yield from case(form, 21, 16, 8, 64, groups=21, crop=31, added=True)
