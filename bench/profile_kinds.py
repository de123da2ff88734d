"""What kind of operation a profiled event is, and how much a convolution has to multiply."""

import functools
import math

import torch

from fastseg.bench.clock import clock_for

REST = "rest"
COPIES = "copies, concatenations"
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "forward", "input gradient", "weight gradient"
KINDS = {
    COPIES: "copy_ contiguous clone to _to_copy cat index_select",
    # What scales a convolution's weights while labelling is a batch normalisation too (fastseg/nn/conv_bn.py).
    "batch norm": "batch_norm _batch_norm_impl_index native_batch_norm native_batch_norm_backward cudnn_batch_norm "
    "cudnn_batch_norm_backward mul rsqrt neg",
    "ReLU, additions, dropout": "relu relu_ clamp_min_ threshold_backward add add_ sum dropout feature_dropout "
    "bernoulli_ div div_",
    "pooling": "max_pool2d max_pool2d_with_indices max_pool2d_with_indices_backward adaptive_avg_pool2d "
    "_adaptive_avg_pool2d _adaptive_avg_pool2d_backward",
    "matrix products": "matmul mm bmm addmm baddbmm baddbmm_",
}
BY_NAME = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names.split()}
NOTHING = ((REST, 1.0),)


def kinds_of(event, around, dtype):
    """((kind, share of the event's time), ...), given that of the event around it.

    What an operation calls belongs to it, but for copies, which are told apart everywhere, and for PyTorch's
    convolutions in our operations. A call for both of a convolution's gradients is divided by `input_share`.
    """
    if BY_NAME.get(event.name) == COPIES:
        return ((COPIES, 1.0),)
    of_ours = around[0][0].startswith("fastseg ")
    if around != NOTHING and not of_ours:
        return around
    if event.name in ("aten::convolution", "aten::convolution_backward"):
        wanted = _wanted(event)
        if len(wanted) == 1:
            return ((_convolution(event, wanted[0]), 1.0),)
        share = input_share(*_signature(event), dtype, _device(event))
        return tuple((_convolution(event, which), part) for which, part in zip(wanted, (share, 1 - share), strict=True))
    if of_ours:
        return around
    if event.name.startswith("fastseg"):  # fastseg:: or, of one backend, fastseg_native::
        return ((f"fastseg {event.name.partition('::')[2]}", 1.0),)
    return ((BY_NAME[event.name], 1.0),) if event.name in BY_NAME else NOTHING


def flops_of(event):
    """Of each of an event's kinds, a multiply-add counting 2 and padding nothing; 0 for what is no convolution."""
    if event.name not in ("aten::convolution", "aten::convolution_backward"):
        return 0
    grad, input, weight, stride, padding, dilation, groups = _signature(event)
    outputs = grad[2:] if grad else (None, None)
    taps = map(_inside, outputs, input[2:], weight[2:], stride, padding, dilation)
    return 2 * input[0] * math.prod(weight[:2]) * math.prod(taps)


def _inside(outputs, size, kernel, stride, padding, dilation):
    """How many pairs of an output and a tap lie in the image, along one axis."""
    outputs = outputs or (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return sum(0 <= y * stride - padding + i * dilation < size for y in range(outputs) for i in range(kernel))


def _convolution(event, which):
    _, _, weight, _, _, dilation, _ = _signature(event)
    if max(weight[2:]) == 1:
        return f"1x1 convolution, {which}"
    return f"{'dilated' if max(dilation) > 1 else 'dense'} convolution, {which}"


def _wanted(event):
    if event.name == "aten::convolution":
        return [FORWARD]
    mask = event.concrete_inputs[10]
    wanted = [which for which, asked in zip((INPUT_GRADIENT, WEIGHT_GRADIENT), mask, strict=False) if asked]
    return wanted or [WEIGHT_GRADIENT]  # of the bias alone


def _signature(event):
    """(gradient's shape or None, input's, weight's, stride, padding, dilation, groups)."""
    shapes, given = event.input_shapes, event.concrete_inputs
    if event.name == "aten::convolution":
        return None, *map(tuple, shapes[:2]), *map(tuple, given[3:6]), given[8]
    return *map(tuple, shapes[:3]), *map(tuple, given[4:7]), given[9]


def _device(event):
    return "cuda" if event.use_device == "cuda" else "cpu"


@functools.cache
def input_share(grad, input, weight, stride, padding, dilation, groups, dtype, device):
    """The input's gradient's share of the time of both, from calls for one and for the other, channels_last."""
    clock = clock_for(torch.device(device))
    shapes = (grad, input, weight)
    given = [
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last) for shape in shapes
    ]
    how = stride, padding, dilation, False, (0, 0), groups

    def seconds(mask):
        def call():
            torch.ops.aten.convolution_backward(*given, None, *how, mask)

        clock.plan(call)
        return min(clock.sample(call, 1) for _ in range(3))

    of_input, of_weight = seconds((True, False, False)), seconds((False, True, False))
    return of_input / (of_input + of_weight)
