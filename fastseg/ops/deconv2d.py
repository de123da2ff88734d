"""Learned deconvolution (transposed convolution), optionally of a part of its output and with a skip added.

With stride s, dilation d and the output's first row and column at (top, left) of the full, unpadded deconvolution,
    output[n, o, y, x] = bias[o] + skip[n, o, y, x] + sum input[n, c, i, j] weight[c, o, ky, kx]
                         over all c, ky, kx, i, j with  i s + ky d = y + top,  j s + kx d = x + left
and the gradients are the same sum read the other way round:
    grad_input[n, c, i, j]     = sum_{o, ky, kx} weight[c, o, ky, kx] grad[n, o, i s + ky d - top, j s + kx d - left]
    grad_weight[c, o, ky, kx]  = sum_{n, i, j}   input[n, c, i, j]    grad[n, o, i s + ky d - top, j s + kx d - left]
where c and o are in the same group. `padding` and the start of `crop` add up to (top, left).

Outputs of equal (y + top) mod s and (x + left) mod s, a *phase*, use the same few taps of the kernel: ceil(k / s)^2 at
most. So an s-strided deconvolution is s^2 small convolutions that share their input, without a multiplication by zero.

A weight that is zero wherever c != o (bilinear interpolation per class, as FCNs start with and keep in the last layer)
runs as a depthwise deconvolution (deconv2d_diagonal.py says when that is known).

Equivalent to:
    F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
and with crop = (top, left, height, width) and skip:
    F.conv_transpose2d(...)[:, :, top : top + height, left : left + width] + skip
Fully convolutional networks: arXiv 1411.4038, section 3.3.
"""

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.arguments import check_tensors, given, is_int, pair
from fastseg.ops.autocast import autocast
from fastseg.ops.deconv2d_diagonal import depthwise
from fastseg.ops.layout import in_format, is_channels_last, laid_out
from fastseg.ops.precision import widened

# window: (top, left, height, width).
SCHEMA = (
    "deconv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? skip, SymInt[] stride, SymInt[] dilation, "
    "SymInt groups, SymInt[] window, bool channels_last) -> Tensor"
)
# size: the input's (h, w).
BACKWARD_INPUT = (
    "deconv2d_backward_input(Tensor grad, Tensor weight, SymInt[] stride, SymInt[] dilation, SymInt groups, "
    "SymInt[] window, SymInt[] size, bool channels_last) -> Tensor"
)
# kernel: the weight's (ky, kx).
BACKWARD_WEIGHT = (
    "deconv2d_backward_weight(Tensor grad, Tensor input, SymInt[] stride, SymInt[] dilation, SymInt groups, "
    "SymInt[] window, SymInt[] kernel) -> Tensor"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_SIDE = 2**28  # sums of a few coordinates are int32 in the GPU kernels
# From so many channels on, and up to so many taps, oneDNN takes the input's gradient 1.2x to 2x as fast as our kernel
# on a CPU where memory is channels_last: bench_deconv2d, U-Net and DCGAN, backward.
MANY_CHANNELS, FEW_TAPS = 64, 16


def reference(input, weight, bias, skip, stride, dilation, groups, window, channels_last):
    full = F.conv_transpose2d(widened(input), widened(weight), None, stride, 0, 0, groups, dilation)
    output = _cut(full, window)
    if bias is not None:
        output = output + widened(bias)[:, None, None]
    if skip is not None:
        output = output + widened(skip)
    return laid_out(output.to(input.dtype), channels_last)


def backward_input_reference(grad, weight, stride, dilation, groups, window, size, channels_last):
    full = _uncut(widened(grad), stride, dilation, window, size, weight.shape[2:])
    return laid_out(F.conv2d(full, widened(weight), None, stride, 0, dilation, groups).to(grad.dtype), channels_last)


def _composed_backward_input(grad, weight, stride, dilation, groups, window, size, channels_last):
    """As the reference, but nothing is copied or padded where the window is what F.conv2d's padding leaves."""
    full, padding = _sizes(size, weight.shape[2:], stride, dilation), window[:2]
    if any(n != m + 2 * p for n, m, p in zip(full, window[2:], padding, strict=True)):
        grad, padding = _uncut(grad, stride, dilation, window, size, weight.shape[2:]), 0
    operand = widened(grad).contiguous(memory_format=torch.channels_last)
    output = F.conv2d(operand, widened(weight), None, stride, padding, dilation, groups)
    return in_format(output.to(grad.dtype), channels_last)


def backward_weight_reference(grad, input, stride, dilation, groups, window, kernel):
    full = _uncut(widened(grad), stride, dilation, window, input.shape[2:], kernel)
    shape = (input.shape[1], grad.shape[1] // groups, *kernel)
    weight = torch.nn.grad.conv2d_weight(full, shape, widened(input), stride, 0, dilation, groups)
    return laid_out(weight.to(grad.dtype), False)


def _sizes(size, kernel, stride, dilation):
    """Of the full deconvolution."""
    return [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]


def _cut(full, window):
    """The window of the full deconvolution; zeros where it reaches beyond."""
    top, left, height, width = window
    return F.pad(full, (-left, left + width - full.shape[3], -top, top + height - full.shape[2]))


def _uncut(grad, stride, dilation, window, size, kernel):
    """The transpose of _cut."""
    top, left, height, width = window
    full = _sizes(size, kernel, stride, dilation)
    return F.pad(grad, (left, full[1] - left - width, top, full[0] - top - height))


def _simplify(input, weight, bias, skip, stride, dilation, groups, *args):
    weight, groups = depthwise(weight, groups)
    return input, weight, bias, skip, stride, dilation, groups, *args


def _simplify_backward_input(grad, weight, stride, dilation, groups, *args):
    weight, groups = depthwise(weight, groups)
    return grad, weight, stride, dilation, groups, *args


def _why_not(backend, input, weight, bias, skip, stride, dilation, groups, window, channels_last):
    return _reason(backend, input, input.shape[2:], weight.shape[2:], stride, dilation, window)


def _why_not_backward_input(backend, grad, weight, stride, dilation, groups, window, size, channels_last):
    return _reason(backend, grad, size, weight.shape[2:], stride, dilation, window)


def _why_not_backward_weight(backend, grad, input, stride, dilation, groups, window, kernel):
    return _reason(backend, grad, input.shape[2:], kernel, stride, dilation, window)


def _reason(backend, tensor, size, kernel, stride, dilation, window):
    if backend in ("composed", "reference"):
        return None
    if tensor.dtype not in DTYPES:
        return f"no kernel for {tensor.dtype}"
    sides = *_sizes(size, kernel, stride, dilation), window[0] + window[2], window[1] + window[3]
    if (backend == "triton" or tensor.is_cuda) and max(sides) > LONGEST_SIDE:
        return f"no kernel for sides over {LONGEST_SIDE}"
    return None


def _slower_backward_input(grad, weight, stride, dilation, groups, window, size, channels_last):
    few, many = weight[0, 0].numel() <= FEW_TAPS, min(weight.shape[:2]) >= MANY_CHANNELS
    if not (few and many and channels_last) or grad.is_cuda or groups != 1:
        return None
    return f"oneDNN is faster with {MANY_CHANNELS} channels or more and {FEW_TAPS} taps or fewer, channels last"


_op = dispatch.register(SCHEMA, reference, why_not=_why_not, simplify=_simplify)
_backward_input = dispatch.register(
    BACKWARD_INPUT,
    backward_input_reference,
    composed=_composed_backward_input,
    why_not=_why_not_backward_input,
    slower=_slower_backward_input,
    simplify=_simplify_backward_input,
)
_backward_weight = dispatch.register(BACKWARD_WEIGHT, backward_weight_reference, why_not=_why_not_backward_weight)


# Each op is linear in its two tensors, and the other two are its derivatives: so they have derivatives of any order.
# `how`: (stride, dilation, groups, window).
class _Deconv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, bias, skip, how, channels_last):
        return _op(input, weight, bias, skip, *how, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, _, ctx.how, ctx.channels_last = inputs
        ctx.size, ctx.kernel = input.shape[2:], weight.shape[2:]
        for_input, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if for_weight else None, weight if for_input else None)

    @staticmethod
    def backward(ctx, grad):
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias, for_skip = ctx.needs_input_grad[:4]
        return (
            _BackwardInput.apply(grad, weight, ctx.how, ctx.size, ctx.channels_last) if for_input else None,
            _BackwardWeight.apply(grad, input, ctx.how, ctx.kernel, ctx.channels_last) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
            grad if for_skip else None,
            None,
            None,
        )


class _BackwardInput(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, weight, how, size, channels_last):
        return _backward_input(grad, weight, *how, size, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, ctx.how, _, ctx.channels_last = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, v):
        grad, weight = ctx.saved_tensors
        for_grad, for_weight = ctx.needs_input_grad[:2]
        return (
            _Deconv.apply(v, weight, None, None, ctx.how, ctx.channels_last) if for_grad else None,
            _BackwardWeight.apply(grad, v, ctx.how, weight.shape[2:], ctx.channels_last) if for_weight else None,
            None,
            None,
            None,
        )


class _BackwardWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, input, how, kernel, channels_last):
        return _backward_weight(grad, input, *how, kernel)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, input, ctx.how, _, ctx.channels_last = inputs
        ctx.save_for_backward(grad, input)

    @staticmethod
    def backward(ctx, v):
        grad, input = ctx.saved_tensors
        for_grad, for_input = ctx.needs_input_grad[:2]
        return (
            _Deconv.apply(input, v, None, None, ctx.how, ctx.channels_last) if for_grad else None,
            _BackwardInput.apply(grad, v, ctx.how, input.shape[2:], ctx.channels_last) if for_input else None,
            None,
            None,
            None,
        )


def deconv2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, crop=None, skip=None
):
    """Transposed convolution of (N, C, h, w) with a weight (C, O / groups, k, k): (N, O, H, W).

    input, weight, bias   float32, float16, bfloat16 (float64 runs the reference), the same dtype; any strides
    stride ... dilation   one int or two, as in F.conv_transpose2d
    crop                  (top, left, height, width) of the output: only this part is computed
    skip                  (N, O, H, W), added after the crop, e.g. a slice of another layer's scores

    Without the batch axis, (C, h, w) gives (O, H, W). The result has the input's memory format. Differentiable any
    number of times in input, weight, bias and skip; the same bits on every run. Under autocast it runs in autocast's
    dtype, as F.conv_transpose2d does. Zeros between channels of a weight (C, C, k, k) may be left out, so that NaN and
    inf of one channel do not reach another. Raises TypeError or ValueError for wrong arguments.
    """
    if isinstance(input, torch.Tensor) and input.dim() == 3:
        how = stride, padding, output_padding, groups, dilation
        skip = skip[None] if isinstance(skip, torch.Tensor) else skip
        return deconv2d(input[None], weight, bias, *how, crop=crop, skip=skip)[0]
    input, weight, bias, skip = autocast(input, weight, bias, skip)
    optional = given(("bias", bias, "O"), ("skip", skip, "NOHW"))
    check_tensors("deconv2d", ("input", input, "NChw"), ("weight", weight, "COyx"), *optional)
    stride, dilation = pair("deconv2d", "stride", stride, 1), pair("deconv2d", "dilation", dilation, 1)
    padding = pair("deconv2d", "padding", padding, 0)
    output_padding = pair("deconv2d", "output_padding", output_padding, 0)
    if input.shape[1] != weight.shape[0] or not isinstance(groups, int) or groups < 1 or input.shape[1] % groups:
        raise ValueError(
            f"deconv2d: weight must be (C, O / groups, k, k) with input's C = {input.shape[1]} divisible by groups, "
            f"got {tuple(weight.shape)} and groups={groups!r}"
        )
    if any(extra >= max(s, d) for extra, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(f"deconv2d: output_padding must be below stride or dilation, got {output_padding}")
    full = _sizes(input.shape[2:], weight.shape[2:], stride, dilation)
    height, width = (n - 2 * p + extra for n, p, extra in zip(full, padding, output_padding, strict=True))
    crop = (0, 0, height, width) if crop is None else crop
    if not _lies_within(crop, height, width):
        wanted = f"(top, left, height, width), within an output of at least 1 x 1, here {height} x {width}"
        raise ValueError(f"deconv2d: crop must be {wanted}, got {crop}")
    top, left, *size = crop
    outputs = weight.shape[1] * groups
    for name, tensor, shape in (("bias", bias, (outputs,)), ("skip", skip, (input.shape[0], outputs, *size))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"deconv2d: {name} must be {shape}, got {tuple(tensor.shape)}")
    window = (top + padding[0], left + padding[1], *size)
    how = stride, dilation, groups, window
    return _Deconv.apply(input, weight, bias, skip, how, is_channels_last(input))


def _lies_within(crop, height, width):
    if not isinstance(crop, (tuple, list)) or len(crop) != 4 or not all(map(is_int, crop)):
        return False
    top, left, rows, columns = crop
    return min(top, left) >= 0 and min(rows, columns) >= 1 and top + rows <= height and left + columns <= width
