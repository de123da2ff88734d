"""Bilinear interpolation whose gradient is a gather: float32 sums in a fixed order.

    output[n, k, y, x] = sum_{i in {0,1}, j in {0,1}}  u_i(y) v_j(x) input[n, k, low(y) + i, low(x) + j]

with the weights u = (1 - t, t), t = s(y) - low(y), low(y) = floor(s(y)) and the source row
    s(y) = max(0, (y + 0.5) h / H - 0.5)      or, with align_corners,      s(y) = y (h - 1) / (H - 1)
(v and s(x) likewise). The gradient is its transpose,
    grad_input[n, k, r, c] = sum_{y, x}  U[y, r] V[x, c] grad[n, k, y, x],      U[y, low(y) + i] = u_i(y),
of which every input pixel gathers its own few y and x: no atomics, the same bits on every run.

Equivalent to:
    F.interpolate(input, size, mode="bilinear", align_corners=align_corners)
with float32 sums whatever the dtype, in the gradient too (PyTorch on a GPU adds in the dtype of the gradient).
"""

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.layout import is_channels_last, laid_out
from fastseg.ops.precision import widened

SCHEMA = "upsample_bilinear(Tensor input, SymInt[] size, bool align_corners, bool channels_last) -> Tensor"
# `size` is the input's (h, w).
BACKWARD = "upsample_bilinear_backward(Tensor grad, SymInt[] size, bool align_corners, bool channels_last) -> Tensor"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_SIDE = 2**22  # float32 coordinates of the GPU kernels are exact enough up to here


def reference(input, size, align_corners, channels_last):
    output = F.interpolate(widened(input), size, mode="bilinear", align_corners=align_corners)
    return laid_out(output.to(input.dtype), channels_last)


def backward_reference(grad, size, align_corners, channels_last):
    wide = widened(grad)
    wide = _gathered(wide, 2, size[0], align_corners)
    wide = _gathered(wide, 3, size[1], align_corners)
    return laid_out(wide.to(grad.dtype), channels_last)


def _gathered(grad, axis, n_in, align_corners):
    """The gradient along one axis, n_in long: every output gives to its two inputs, and to no other, were it NaN."""
    n_out = grad.shape[axis]
    o = torch.arange(n_out, dtype=grad.dtype, device=grad.device)
    if align_corners:
        source = o * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        source = ((o + 0.5) * (n_in / n_out) - 0.5).clamp_min(0)
    low = source.long().clamp_max(n_in - 1)
    high = (low + (n_in != n_out)).clamp_max(n_in - 1)
    t = (source - low).clamp(0, 1).view([-1 if i == axis else 1 for i in range(4)])
    shape = [n_in if i == axis else n for i, n in enumerate(grad.shape)]
    return grad.new_zeros(shape).index_add(axis, low, (1 - t) * grad).index_add(axis, high, t * grad)


def why_not(backend, tensor, size, align_corners, channels_last):
    if backend == "reference":
        return None
    if tensor.dtype not in DTYPES:
        return f"no kernel for {tensor.dtype}"
    if (backend == "triton" or tensor.is_cuda) and max(*tensor.shape[2:], *size) > LONGEST_SIDE:
        return f"no kernel for sides over {LONGEST_SIDE}"
    return None


_op = dispatch.register(SCHEMA, reference, why_not=why_not)
_backward_op = dispatch.register(BACKWARD, backward_reference, why_not=why_not)


class _Upsample(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, size, align_corners, channels_last):
        return _op(input, size, align_corners, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _, *ctx.how = inputs
        ctx.input_size = input.shape[2:]

    @staticmethod
    def backward(ctx, grad):
        return _Gather.apply(grad, ctx.input_size, *ctx.how), None, None, None


class _Gather(torch.autograd.Function):
    """The transpose of _Upsample: linear too, so each is the other's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, size, align_corners, channels_last):
        return _backward_op(grad, size, align_corners, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, _, *ctx.how = inputs
        ctx.grad_size = grad.shape[2:]

    @staticmethod
    def backward(ctx, grad):
        return _Upsample.apply(grad, ctx.grad_size, *ctx.how), None, None, None


def upsample_bilinear(input, size, align_corners=False):
    """(N, C, h, w) interpolated bilinearly to (N, C, H, W), `size` = (H, W) or one int for both.

    input          float32, float16, bfloat16 (float64 runs the reference); any strides, N may be 0
    align_corners  as in F.interpolate: True puts the corner pixels' centres on each other

    The result has the input's dtype (under autocast too) and memory format. Differentiable any number of times.
    Raises TypeError or ValueError for wrong arguments.
    """
    if not isinstance(input, torch.Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, torch.Tensor) else type(input).__name__
        raise TypeError(f"upsample_bilinear: input must be a floating-point tensor, got {got}")
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"upsample_bilinear: input must be (N, C, h, w) with C, h, w >= 1, got {tuple(input.shape)}")
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, (int, torch.SymInt)) and side >= 1 for side in sides):
        raise ValueError(f"upsample_bilinear: size must be an int or two, (H, W), from 1 on, got {size!r}")
    return _Upsample.apply(input, sides, align_corners, is_channels_last(input))
