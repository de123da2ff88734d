"""Cross-entropy of bilinearly upsampled logits, without the upsampled logits.

With z[n, k, p] the logits interpolated to output pixel p (as in upsample_bilinear), t = target[n, p], w = weight (1s if
None), e = label_smoothing and C classes, the loss of a pixel is, as in F.cross_entropy,
    loss[n, p] = (1 - e) w[t] (lse - z[t]) + e / C sum_k w[k] (lse - z[k]),      lse = log sum_k exp z[k]
and 0 where t = ignore_index. "sum" adds them up, "mean" divides that by total_weight = sum of w[t]. The gradient is
    d loss / d z[k] = a softmax(z)[k] - (1 - e) w[t] [k = t] - e / C w[k],      a = (1 - e) w[t] + e / C sum_l w[l]
gathered by the input's pixels with the weights of the interpolation, in float32 and in a fixed order.

"mean" and "sum" take this gradient in the forward pass, where the exponentials are at hand, and backward only scales
it: on a CPU a training step takes two thirds of the time of one that computes them again (1/8 resolution, 19 to 150
classes). It is as small as the input. "none" has a factor for each pixel only in backward, and computes them again.

Equivalent to:
    F.cross_entropy(F.interpolate(input.float(), target.shape[-2:], mode="bilinear", align_corners=align_corners),
                    target, weight, ignore_index=..., reduction=..., label_smoothing=...)
"""

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.layout import is_channels_last, memory_format
from fastseg.ops.precision import widened
from fastseg.ops.upsample_bilinear import LONGEST_SIDE
from fastseg.ops.upsample_bilinear import backward_reference as gather

# loss: (N, H, W), or with `reduce` their sum; grad: of that sum, float32 and channels_last, empty unless `with_grad`.
SCHEMA = (
    "upsample_cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, float label_smoothing, "
    "bool align_corners, bool reduce, bool with_grad) -> (Tensor loss, Tensor total_weight, Tensor grad)"
)
# The gradient of sum(grad * loss), grad (N, H, W); float32 and channels_last.
BACKWARD = (
    "upsample_cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int ignore_index, "
    "float label_smoothing, bool align_corners) -> Tensor"
)
INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)
REDUCTIONS = ("none", "mean", "sum")


def reference(input, target, weight, ignore_index, label_smoothing, align_corners, reduce, with_grad):
    logits = _upsampled(input, target, align_corners)
    weight = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)
    how = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    loss = F.cross_entropy(logits, target.long(), weight, reduction="sum" if reduce else "none", **how)
    total_weight = _pixel_weight(target, weight, ignore_index).sum()
    grad = logits.new_empty(0)
    if with_grad:
        ones = logits.new_ones(target.shape)
        grad = backward_reference(ones, input, target, weight, ignore_index, label_smoothing, align_corners)
    return loss, total_weight, grad


def backward_reference(grad, input, target, weight, ignore_index, label_smoothing, align_corners):
    logits = _upsampled(input, target, align_corners)
    weight = logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)
    valid = target.long() != ignore_index
    target_part = (1 - label_smoothing) * _pixel_weight(target, weight, ignore_index)
    of_logits = target_part[:, None] * logits.softmax(1)
    if label_smoothing:
        smooth_part = label_smoothing / logits.shape[1] * valid.to(logits.dtype)[:, None]
        of_logits += smooth_part * (weight.sum() * logits.softmax(1) - weight[:, None, None])
    of_logits.scatter_add_(1, _classes(target, ignore_index)[:, None], -target_part[:, None])
    # An ignored pixel has no say, even where its logits are inf or NaN.
    of_logits = torch.where(valid[:, None], grad.to(logits.dtype)[:, None] * of_logits, 0)
    return gather(of_logits, input.shape[2:], align_corners, channels_last=True)


def _upsampled(input, target, align_corners):
    return F.interpolate(widened(input), target.shape[1:], mode="bilinear", align_corners=align_corners)


def _classes(target, ignore_index):
    """Targets as indices, 0 for ignored ones."""
    return torch.where(target.long() == ignore_index, 0, target.long())


def _pixel_weight(target, weight, ignore_index):
    return torch.where(target.long() == ignore_index, 0, weight[_classes(target, ignore_index)])


def why_not(backend, input, target, *args):
    if backend == "reference":
        return None
    if input.dtype not in INPUT_DTYPES:
        return f"no kernel for {input.dtype}"
    if (backend == "triton" or input.is_cuda) and max(*input.shape[2:], *target.shape[1:]) > LONGEST_SIDE:
        return f"no kernel for sides over {LONGEST_SIDE}"
    return None


_op = dispatch.register(SCHEMA, reference, why_not=why_not)
_backward_op = dispatch.register(
    BACKWARD, backward_reference, why_not=lambda backend, grad, *args: why_not(backend, *args)
)


class _Reduced(torch.autograd.Function):
    """The sum or mean, and what backward needs: the gradient is taken in the forward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, channels_last, mean, with_grad, *args):
        loss, total_weight, grad = _op(input, *args, True, with_grad)
        return loss / total_weight if mean else loss, total_weight, grad

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, ctx.channels_last, ctx.mean, *_ = inputs
        _, total_weight, grad = output
        ctx.mark_non_differentiable(total_weight, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, total_weight, grad)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 9
        input, total_weight, grad = ctx.saved_tensors
        if ctx.mean:  # all pixels ignored: the loss is nan, but as in F.cross_entropy the gradient is 0
            grad_loss = torch.where(total_weight == 0, 0, grad_loss / total_weight)
        return _as_input(grad * grad_loss, input, ctx.channels_last), *[None] * 8


class _Map(torch.autograd.Function):
    """The loss of every pixel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, channels_last, *args):
        return _op(input, *args, False, False)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, ctx.channels_last, target, weight, *ctx.how = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx, grad_loss):
        input, target, weight = ctx.saved_tensors
        grad = _backward_op(grad_loss.detach(), input.detach(), target, weight, *ctx.how)
        return _as_input(grad, input, ctx.channels_last), *[None] * 6


class _Once(torch.autograd.Function):
    """A gradient that says so if it is differentiated again, rather than to count as a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, input):
        return grad.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("upsample_cross_entropy: the gradient cannot be differentiated: there is no second one")


def _as_input(grad, input, channels_last):
    grad = grad.to(input.dtype).contiguous(memory_format=memory_format(channels_last))
    return _Once.apply(grad, input) if torch.is_grad_enabled() and input.requires_grad else grad


def upsample_cross_entropy(
    input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, align_corners=False
):
    """Cross-entropy of logits (N, C, h, w), interpolated bilinearly to the size of target (N, H, W).

    input            float32, float16, bfloat16 (float64 runs the reference); any strides, N may be 0
    target           class indices, int64, int32 or uint8
    weight           (C,) class weights, from 0 on
    ignore_index     pixels with this target count for nothing
    reduction        "none" (N, H, W), "mean" (over the weights of the targets; nan if all are ignored) or "sum"
    label_smoothing  in [0, 1]
    align_corners    as in F.interpolate

    The loss is float32 whatever the input's dtype (float64 for float64), and computed in it. Differentiable once, in
    input. Raises TypeError or ValueError for wrong arguments. A target that is neither a class nor ignore_index raises
    RuntimeError on a CPU and fails a device-side assertion on a GPU, as in F.cross_entropy.
    """
    _check(input, target, weight, reduction, label_smoothing)
    if weight is not None:
        weight = weight.detach().to(torch.float64 if input.dtype == torch.float64 else torch.float32).contiguous()
    arguments = target, weight, ignore_index, float(label_smoothing), align_corners
    if reduction == "none":
        return _Map.apply(input, is_channels_last(input), *arguments)
    with_grad = torch.is_grad_enabled() and input.requires_grad
    return _Reduced.apply(input, is_channels_last(input), reduction == "mean", with_grad, *arguments)[0]


def _check(input, target, weight, reduction, label_smoothing):
    name = "upsample_cross_entropy"
    if not isinstance(input, torch.Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, torch.Tensor) else type(input).__name__
        raise TypeError(f"{name}: input must be a floating-point tensor, got {got}")
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"{name}: input must be (N, C, h, w) with C, h, w >= 1, got {tuple(input.shape)}")
    if not isinstance(target, torch.Tensor) or target.dtype not in TARGET_DTYPES:
        got = target.dtype if isinstance(target, torch.Tensor) else type(target).__name__
        raise TypeError(f"{name}: target must be class indices in int64, int32 or uint8, got {got}")
    if target.dim() != 3 or target.shape[0] != input.shape[0] or 0 in target.shape[1:]:
        wanted = f"({input.shape[0]}, H, W) with H, W >= 1"
        raise ValueError(f"{name}: target must be {wanted}, got {tuple(target.shape)}")
    if target.device != input.device:
        raise ValueError(f"{name}: target must be on {input.device} as input is, got {target.device}")
    if weight is not None:
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            got = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
            raise TypeError(f"{name}: weight must be a floating-point tensor or None, got {got}")
        if weight.shape != input.shape[1:2]:
            raise ValueError(f"{name}: weight must be ({input.shape[1]},), got {tuple(weight.shape)}")
        if weight.device != input.device:
            raise ValueError(f"{name}: weight must be on {input.device} as input is, got {weight.device}")
        if weight.requires_grad:
            raise ValueError(f"{name}: weight must not require a gradient: there is none")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}")
