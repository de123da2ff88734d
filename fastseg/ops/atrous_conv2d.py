"""Atrous (dilated) convolution that multiplies no padding, optionally with what follows a convolution fused into it.

With stride s, padding p and rate (dilation) d,
    output[n, o, y, x] = scale[o] sum_{c, i, j} weight[o, c, i, j] input[n, c, y s - p + i d, x s - p + j d]
                         + bias[o] + residual[n, o, y, x]                           then max(0, .) with relu
where inputs outside of the image are zeros and c goes through the channels of o's group. The gradients of the sum are
    grad_input[n, c, v, u]   = sum_{o, i, j} weight[o, c, i, j] grad[n, o, y, x]    with y s - p + i d = v, x alike
    grad_weight[o, c, i, j]  = sum_{n, y, x} grad[n, o, y, x] input[n, c, y s - p + i d, x s - p + j d]
At large rates most taps of most outputs read zeros: at rate 36 on a map of 65 x 65, 60 % of the products. Kernels skip
them by regions of the output (atrous_conv2d_plan.py).

Equivalent to:
    F.conv2d(input, weight, bias, stride, padding, dilation, groups)
and with the keywords:
    F.conv2d(input, weight, None, ...) * scale[:, None, None] + bias[:, None, None] + residual,  then F.relu
DeepLabv3: arXiv 1706.05587, section 3.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from fastseg import dispatch
from fastseg.ops import atrous_conv2d_compiled as compiled
from fastseg.ops.arguments import check_tensors, given, pair
from fastseg.ops.atrous_conv2d_plan import axes, executed_work, turned
from fastseg.ops.autocast import autocast
from fastseg.ops.layout import in_format, is_channels_last, memory_format

SCHEMA = (
    "atrous_conv2d(Tensor input, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, bool relu, bool channels_last) -> Tensor"
)
# size: the input's (H, W).
BACKWARD_INPUT = (
    "atrous_conv2d_backward_input(Tensor grad, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, SymInt[] size, bool channels_last) -> Tensor"
)
# kernel: the weight's (ky, kx). The result is channels_last if the weight is.
BACKWARD_WEIGHT = (
    "atrous_conv2d_backward_weight(Tensor grad, Tensor input, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, SymInt[] kernel, bool channels_last) -> Tensor"
)
# What compiled kernels are called with: see atrous_conv2d_tiles.py. size: the output's (O, H, W).
COMPILED = (
    "(Tensor input, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, Tensor tiles, int[] stride, "
    "int[] size, bool relu) -> Tensor"
)
COMPILED_BACKWARD_WEIGHT = (
    "atrous_conv2d_backward_weight(Tensor grad, Tensor input, Tensor parts, int[] stride, int taps, int count) "
    "-> Tensor"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 2**31 - 2**16  # pixels, weights: tables and kernels count them in int32
# The GPU kernels take what executes at most so much of the dense work; cuDNN, which is the reference there, the rest.
# A guess until a bench has run on a GPU: ours are expected at 0.7 of cuDNN's speed.
WORTHWHILE = 0.7


def reference(input, weight, scale, bias, residual, stride, padding, dilation, groups, relu, channels_last):
    output = F.conv2d(input, weight, None if scale is not None else bias, stride, padding, dilation, groups)
    if scale is not None:
        output *= scale[:, None, None]
        if bias is not None:
            output += bias[:, None, None]
    if residual is not None:
        output += residual
    return in_format(output.relu_() if relu else output, channels_last)


def backward_input_reference(grad, weight, stride, padding, dilation, groups, size, channels_last):
    input = _unread(grad, (grad.shape[0], weight.shape[1] * groups, *size), channels_last)
    how = stride, padding, dilation, False, (0, 0), groups
    result, _, _ = torch.ops.aten.convolution_backward(grad, input, weight, None, *how, (True, False, False))
    return in_format(result, channels_last)


def _unread(like, shape, channels_last):
    """A stand-in for what a gradient is of, which PyTorch wants to see. Dense, as it would copy it otherwise."""
    how = {"dtype": like.dtype, "device": like.device, "memory_format": memory_format(channels_last)}
    return torch.empty(shape, **how)


def backward_weight_reference(grad, input, stride, padding, dilation, groups, kernel, channels_last):
    weight = _unread(grad, (grad.shape[1], input.shape[1] // groups, *kernel), channels_last)
    how = stride, padding, dilation, False, (0, 0), groups
    _, result, _ = torch.ops.aten.convolution_backward(grad, input, weight, None, *how, (False, True, False))
    return in_format(result, channels_last)


def _why_not(backend, input, weight, scale, bias, residual, stride, padding, dilation, groups, *args):
    rows, columns = axes(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return reason(backend, input, weight.numel(), groups, rows.outputs * columns.outputs)


def _why_not_backward_input(backend, grad, weight, stride, padding, dilation, groups, size, *args):
    if backend != "reference" and tuple(stride) != (1, 1):
        return "no kernel for the input's gradient of a strided convolution"
    return reason(backend, grad, weight.numel(), groups, math.prod(size))


def _why_not_backward_weight(backend, grad, input, stride, padding, dilation, groups, kernel, *args):
    weights = grad.shape[1] * input.shape[1] * math.prod(kernel)
    return reason(backend, input, weights, groups, math.prod(grad.shape[2:]))


def reason(backend, tensor, weights, groups=1, pixels=0):
    """Why a backend cannot convolve with so many weights, to results of so many pixels per image, or None."""
    if backend == "reference":
        return None
    if tensor.dtype not in DTYPES:
        return f"no kernel for {tensor.dtype}"
    if groups != 1:
        return "no kernel for groups"
    if backend == "native" and tensor.dtype == torch.float32 and allows_tf32():
        return "no kernel for TF32, which torch.backends.cudnn allows"
    if max(weights, tensor.shape[0] * max(math.prod(tensor.shape[2:]), pixels)) > MOST:
        return f"no kernel for more than {MOST} pixels or weights"
    return None


def allows_tf32():
    """Whether convolutions may round their float32 factors: PyTorch's switch."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def _slower(input, weight, scale, bias, residual, stride, padding, dilation, *args):
    return slower(input.shape[0], axes(input.shape[2:], weight.shape[2:], stride, padding, dilation))


def _slower_backward_input(grad, weight, stride, padding, dilation, groups, size, channels_last):
    of_grad, padding = turned(size, weight.shape[2:], padding, dilation)
    return slower(grad.shape[0], axes(of_grad, weight.shape[2:], stride, padding, dilation))


def _slower_backward_weight(grad, input, stride, padding, dilation, groups, kernel, channels_last):
    return slower(grad.shape[0], axes(input.shape[2:], kernel, stride, padding, dilation))


def slower(batch, *sides):
    """Why cuDNN is expected to be faster than kernels that skip padding, or None. sides: (rows, columns) per branch."""
    work = sum(executed_work(batch, *side) * side[0].kernel * side[1].kernel for side in sides)
    work /= sum(rows.kernel * columns.kernel for rows, columns in sides)
    return f"{work:.2f} of the dense work is left, above {WORTHWHILE} cuDNN is faster" if work > WORTHWHILE else None


_op = dispatch.register(
    SCHEMA,
    reference,
    why_not=_why_not,
    slower=_slower,
    native=("cuda",),
    compiled=("atrous_conv2d" + COMPILED, compiled.forward),
)
_backward_input = dispatch.register(
    BACKWARD_INPUT,
    backward_input_reference,
    why_not=_why_not_backward_input,
    slower=_slower_backward_input,
    native=("cuda",),
    compiled=("atrous_conv2d_backward_input" + COMPILED, compiled.backward_input),
)
_backward_weight = dispatch.register(
    BACKWARD_WEIGHT,
    backward_weight_reference,
    why_not=_why_not_backward_weight,
    slower=_slower_backward_weight,
    native=("cuda",),
    compiled=(COMPILED_BACKWARD_WEIGHT, compiled.backward_weight),
)


# Each op is linear in its two tensors, and the other two are its derivatives: so they have derivatives of any order.
# `how`: (stride, padding, dilation, groups).
class _Conv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, bias, how, channels_last):
        return _op(input, weight, None, bias, None, *how, False, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, ctx.how, ctx.channels_last = inputs
        ctx.size, ctx.kernel, ctx.weight_format = input.shape[2:], weight.shape[2:], is_channels_last(weight)
        for_input, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if for_weight else None, weight if for_input else None)

    @staticmethod
    def backward(ctx, grad):
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            _BackwardInput.apply(grad, weight, ctx.how, ctx.size, ctx.channels_last) if for_input else None,
            _BackwardWeight.apply(grad, input, ctx.how, ctx.kernel, ctx.weight_format) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
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
        ctx.weight_format = is_channels_last(weight)
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, v):
        grad, weight = ctx.saved_tensors
        for_grad, for_weight = ctx.needs_input_grad[:2]
        return (
            _Conv.apply(v, weight, None, ctx.how, ctx.channels_last) if for_grad else None,
            _BackwardWeight.apply(grad, v, ctx.how, weight.shape[2:], ctx.weight_format) if for_weight else None,
            None,
            None,
            None,
        )


class _BackwardWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, input, how, kernel, channels_last):
        return _backward_weight(grad, input, *how, kernel, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, input, ctx.how, _, _ = inputs
        ctx.input_format = is_channels_last(input)
        ctx.save_for_backward(grad, input)

    @staticmethod
    def backward(ctx, v):
        grad, input = ctx.saved_tensors
        for_grad, for_input = ctx.needs_input_grad[:2]
        return (
            _Conv.apply(input, v, None, ctx.how, ctx.input_format) if for_grad else None,
            _BackwardInput.apply(grad, v, ctx.how, input.shape[2:], ctx.input_format) if for_input else None,
            None,
            None,
            None,
        )


def atrous_conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, scale=None, residual=None, relu=False
):
    """Convolution of (N, C, H, W) with a weight (O, C / groups, ky, kx): (N, O, H', W').

    input, weight, bias   float32, float16, bfloat16 or float64, the same dtype; any strides, N may be 0
    stride ... dilation   one int or two, as in F.conv2d; padding may be "valid" or, with stride 1, "same"
    scale                 (O,), multiplies the sums before the bias is added: that of a BatchNorm, whose shift is `bias`
    residual              (N, O, H', W'), added after the bias
    relu                  whether negative results become 0

    Without the batch axis, (C, H, W) gives (O, H', W'). The result has the input's memory format. Differentiable any
    number of times in all tensors; where a gradient is wanted, scale, residual and relu are operations of their own.
    float32 products are TF32 where torch.backends.cudnn.conv allows it. The same bits on every run where our kernels
    run; with cuDNN only if torch.backends.cudnn.deterministic. Under autocast it runs in autocast's dtype, as F.conv2d
    does. Raises TypeError or ValueError for wrong arguments.
    """
    if isinstance(input, torch.Tensor) and input.dim() == 3:
        residual = residual[None] if isinstance(residual, torch.Tensor) else residual
        fused = {"scale": scale, "residual": residual, "relu": relu}
        return atrous_conv2d(input[None], weight, bias, stride, padding, dilation, groups, **fused)[0]
    input, weight, bias, scale, residual = autocast(input, weight, bias, scale, residual)
    optional = given(("bias", bias, "O"), ("scale", scale, "O"), ("residual", residual, "NOHW"))
    check_tensors("atrous_conv2d", ("input", input, "NCHW"), ("weight", weight, "OCyx"), *optional)
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"atrous_conv2d: weight must be (O, C / groups, k, k) with input's C = {input.shape[1]} and groups, which "
            f"divides O, got {tuple(weight.shape)} and groups={groups!r}"
        )
    stride, dilation = pair("atrous_conv2d", "stride", stride, 1), pair("atrous_conv2d", "dilation", dilation, 1)
    channels_last = is_channels_last(input)
    input, padding = _padded(input, padding, stride, dilation, weight.shape[2:])
    size = tuple(each.outputs for each in axes(input.shape[2:], weight.shape[2:], stride, padding, dilation))
    if min(size) < 1:
        wanted = f"for an output of at least 1 x 1 of an input of {input.shape[2]} x {input.shape[3]}"
        raise ValueError(f"atrous_conv2d: padding must be {wanted}, got {padding} for a weight {tuple(weight.shape)}")
    outputs = weight.shape[0]
    named = ("bias", bias, (outputs,)), ("scale", scale, (outputs,))
    for name, tensor, shape in (*named, ("residual", residual, (input.shape[0], outputs, *size))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"atrous_conv2d: {name} must be {shape}, got {tuple(tensor.shape)}")
    how = stride, padding, dilation, groups
    if scale is None and residual is None and not relu:
        return _Conv.apply(input, weight, bias, how, channels_last)
    tensors = input, weight, bias, scale, residual
    if wants_gradient(tensors):
        output = _Conv.apply(input, weight, None, how, channels_last)
        output = output if scale is None else output * scale[:, None, None]
        output = output if bias is None else output + bias[:, None, None]
        output = output if residual is None else output + residual
        return output.relu() if relu else output
    return _op(input, weight, scale, bias, residual, *how, relu, channels_last)


def wants_gradient(tensors):
    """Whether a derivative is wanted in one of these tensors or None, for operations without one.

    A forward-mode one, too: it would be lost, where an autograd.Function says that it has none.
    """
    tensors = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _padded(input, padding, stride, dilation, kernel):
    """(input, two ints of padding): what "same" pads on one side only is added to the input."""
    if not isinstance(padding, str):
        return input, pair("atrous_conv2d", "padding", padding, 0)
    if padding not in ("valid", "same") or (padding == "same" and stride != (1, 1)):
        wanted = 'an int or two, "valid" or, with stride 1, "same"'
        raise ValueError(f"atrous_conv2d: padding must be {wanted}, got {padding!r} with stride {stride}")
    if padding == "valid":
        return input, (0, 0)
    bottom, right = (d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True))
    input = F.pad(input, (0, right, 0, bottom)) if bottom or right else input
    return input, tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
