"""Atrous convolutions of one input at several rates, side by side: the branches of ASPP, in one launch.

With branch b's weight of O_b outputs and k_b x k_b taps, k_b odd, and rate d_b, the results are stacked along the
channels; o, of all sum O_b, is output o_b of branch b:
    output[n, o, y, x] = scale[o] sum_{c, i, j} weight_b[o_b, c, i, j] input[n, c, y + (i - k_b // 2) d_b, x + ...]
                         + bias[o]           then max(0, .) with relu
and likewise for j. Inputs outside of the image are zeros, and not multiplied (atrous_conv2d_plan.py). The gradients are
those of each atrous_conv2d, and their sum for the input.

Equivalent to:
    torch.cat([F.conv2d(input, w, padding=d * (k // 2), dilation=d) for w, d in zip(weights, dilations)], 1)
and then  * scale[:, None, None] + bias[:, None, None]  and F.relu.
Atrous spatial pyramid pooling: arXiv 1706.05587, section 3.3.
"""

import numbers

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops import atrous_conv2d_compiled as compiled
from fastseg.ops.arguments import check_tensors, given
from fastseg.ops.atrous_conv2d import COMPILED, atrous_conv2d, reason, slower, wants_gradient
from fastseg.ops.atrous_conv2d_plan import branches
from fastseg.ops.autocast import autocast
from fastseg.ops.layout import in_format, is_channels_last

SCHEMA = (
    "atrous_pyramid(Tensor input, Tensor[] weights, Tensor? scale, Tensor? bias, SymInt[] dilations, bool relu, "
    "bool channels_last) -> Tensor"
)


def reference(input, weights, scale, bias, dilations, relu, channels_last):
    maps = [_branch(F.conv2d, input, weight, rate) for weight, rate in zip(weights, dilations, strict=True)]
    output = in_format(torch.cat(maps, 1), channels_last)
    del maps
    if scale is not None:
        output *= scale[:, None, None]
    if bias is not None:
        output += bias[:, None, None]
    return output.relu_() if relu else output


def _branch(convolution, input, weight, rate):
    padding = [rate * (k // 2) for k in weight.shape[2:]]
    return convolution(input, weight, None, 1, padding, rate)


def _why_not(backend, input, weights, *args):
    return reason(backend, input, sum(weight.numel() for weight in weights))


def _slower(input, weights, scale, bias, dilations, *args):
    return slower(input.shape[0], *branches(input.shape[2:], weights, dilations))


_op = dispatch.register(
    SCHEMA,
    reference,
    why_not=_why_not,
    slower=_slower,
    native=("cuda",),
    compiled=("atrous_pyramid" + COMPILED, compiled.pyramid),
    kernels="atrous_conv2d",
)


def atrous_pyramid(input, weights, dilations, *, scale=None, bias=None, relu=False):
    """(N, C, H, W) convolved by weights (O_i, C, k_i, k_i), k_i odd, at rates `dilations`: (N, sum O_i, H, W).

    input, weights  float32, float16, bfloat16 or float64, one dtype; any strides, N may be 0
    dilations       one int for each weight; what it is for a 1 x 1 weight makes no difference
    scale, bias     (sum O_i,): multiplies the sums, then is added; those of a BatchNorm
    relu            whether negative results become 0

    The result has the input's memory format. Differentiable any number of times in all tensors; where a gradient is
    wanted, each branch is an atrous_conv2d, and so is its gradient. Under autocast it runs in autocast's dtype, as
    F.conv2d does. Raises TypeError or ValueError for wrong arguments.
    """
    if not isinstance(weights, (tuple, list)) or not weights:
        got = type(weights).__name__ if not isinstance(weights, (tuple, list)) else "none"
        raise TypeError(f"atrous_pyramid: weights must be a list of tensors, at least one, got {got}")
    input, scale, bias, *weights = autocast(input, scale, bias, *weights)
    _check(input, weights, dilations, scale, bias)
    dilations = [int(rate) for rate in dilations]
    channels_last = is_channels_last(input)
    if wants_gradient([input, scale, bias, *weights]):
        maps = [_branch(atrous_conv2d, input, weight, rate) for weight, rate in zip(weights, dilations, strict=True)]
        output = torch.cat(maps, 1)
        output = output if scale is None else output * scale[:, None, None]
        output = output if bias is None else output + bias[:, None, None]
        return output.relu() if relu else output
    return _op(input, weights, scale, bias, dilations, relu, channels_last)


def _check(input, weights, dilations, scale, bias):
    weights_named = [(f"weights[{i}]", weight, "OCyx") for i, weight in enumerate(weights)]
    optional = given(("scale", scale, "O"), ("bias", bias, "O"))
    check_tensors("atrous_pyramid", ("input", input, "NCHW"), *weights_named, *optional)
    for name, weight, _ in weights_named:
        if weight.shape[1] != input.shape[1] or not all(k % 2 for k in weight.shape[2:]):
            wanted = f"(O, {input.shape[1]}, k, k) with odd k"
            raise ValueError(f"atrous_pyramid: {name} must be {wanted}, got {tuple(weight.shape)}")
    are = isinstance(dilations, (tuple, list)) and all(isinstance(r, numbers.Integral) and r >= 1 for r in dilations)
    if not are or len(dilations) != len(weights):
        wanted = f"{len(weights)} ints from 1 on, one for each weight"
        raise ValueError(f"atrous_pyramid: dilations must be {wanted}, got {dilations!r}")
    outputs = sum(weight.shape[0] for weight in weights)
    for name, tensor, _ in optional:
        if tensor.shape != (outputs,):
            raise ValueError(f"atrous_pyramid: {name} must be ({outputs},), got {tuple(tensor.shape)}")
