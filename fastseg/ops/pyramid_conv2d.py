"""Convolution over an input and bilinearly upsampled priors, without the upsampled priors or their concatenation.

Bilinear interpolation is linear, so the priors are convolved before it, at their own few cells. With s going through
the cells of all priors, S of them (prior after prior, the cells of one row by row), r through the channels of the prior
that cell s is of, tap (a, b), padding (p, q) and M[s, y, x] the weight of cell s in the interpolation to pixel (y, x),
0 outside of the image:
    slab[n, s, a, b, o]  = sum_r prior[n, r, s] weight_prior[o, r, a, b]
    output[n, o, y, x]   = bias[o] + sum_{c, a, b} weight[o, c, a, b] input[n, c, y + a - p, x + b - q]
                                   + sum_{s, a, b} M[s, y + a - p, x + b - q] slab[n, s, a, b, o]
The slab's gradient is the transpose of the last sum,
    grad_slab[n, s, a, b, o] = sum_{y, x} M[s, y + a - p, x + b - q] grad[n, o, y, x]
and all else is a convolution of the input alone, or a small matrix product. PSPNet's 3x3 convolution of 2048 + 4 * 512
channels does half of the multiplications, and 1 / 80 more for S = 50 cells.

Equivalent to:
    up = [F.interpolate(p, input.shape[-2:], mode="bilinear", align_corners=align_corners) for p in priors]
    F.conv2d(torch.cat([input, *up], 1), weight, bias, padding=padding)
Pyramid scene parsing: arXiv 1612.01105, section 3.2.
"""

import functools

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.arguments import check_tensors, given
from fastseg.ops.autocast import autocast
from fastseg.ops.layout import is_channels_last, memory_format
from fastseg.ops.precision import widened
from fastseg.ops.pyramid_conv2d_matrix import cached_matrix, interpolation_matrix
from fastseg.ops.pyramid_conv2d_slab import gradients as slab_gradients
from fastseg.ops.pyramid_conv2d_slab import join, slab_of
from fastseg.ops.pyramid_pool import pairs
from fastseg.ops.upsample_bilinear import upsample_bilinear

# weight: (O, C, kh, kw), of the input's channels alone. slab: (N, S, kh, kw, O), contiguous. bins: h0, w0, h1, w1, ...
SCHEMA = (
    "pyramid_conv2d(Tensor input, Tensor weight, Tensor slab, Tensor? bias, SymInt[] bins, SymInt[] padding, "
    "bool align_corners, bool channels_last) -> Tensor"
)
# kernel: (kh, kw); size: the input's (H, W). Returns (N, S, kh, kw, O), contiguous.
BACKWARD_SLAB = (
    "pyramid_conv2d_backward_slab(Tensor grad, SymInt[] bins, SymInt[] kernel, SymInt[] padding, SymInt[] size, "
    "bool align_corners) -> Tensor"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_ON_GPU = 2**30  # of what the GPU kernels count in int32
MOST_CUDA_PRIORS = 256  # in the 4 KB of a launch's arguments
MOST_CELLS = 256  # more make large matrices of what is then hardly small: they are upsampled


def reference(input, weight, slab, bias, bins, padding, align_corners, channels_last):
    wide = [None if x is None else widened(x) for x in (input, weight, slab, bias)]
    form = bins, padding, align_corners, channels_last
    return _convolved(*wide, *form, interpolation_matrix).to(input.dtype)


def composed(input, weight, slab, bias, bins, padding, align_corners, channels_last):
    return _convolved(input, weight, slab, bias, bins, padding, align_corners, channels_last, cached_matrix)


def _convolved(input, weight, slab, bias, bins, padding, align_corners, channels_last, matrix_of):
    """The convolution of the input, to which a matrix product adds the priors, in place."""
    layout = memory_format(channels_last)
    kernel, size = weight.shape[2:], input.shape[2:]
    matrix = matrix_of(bins, size, kernel, padding, align_corners, input.dtype, input.device)
    input, weight = (x.contiguous(memory_format=layout) for x in (input, weight))
    output = F.conv2d(input, weight, bias, padding=padding).contiguous(memory_format=layout)
    n, outputs, h, w = output.shape
    matrix, slab = matrix.expand(n, *matrix.shape), slab.flatten(1, 3)  # (N, H' W', S kh kw), (N, S kh kw, O)
    if channels_last:
        output.permute(0, 2, 3, 1).view(n, h * w, outputs).baddbmm_(matrix, slab)
    else:
        output.view(n, outputs, h * w).baddbmm_(slab.mT, matrix.mT)
    return output


def backward_slab_reference(grad, bins, kernel, padding, size, align_corners):
    wide = widened(grad)
    return _gathered(wide, bins, kernel, padding, size, align_corners, interpolation_matrix).to(grad.dtype)


def backward_slab_composed(grad, bins, kernel, padding, size, align_corners):
    return _gathered(grad, bins, kernel, padding, size, align_corners, cached_matrix)


def _gathered(grad, bins, kernel, padding, size, align_corners, matrix_of):
    matrix = matrix_of(bins, size, kernel, padding, align_corners, grad.dtype, grad.device)
    slab = torch.bmm(matrix.mT.expand(grad.shape[0], *matrix.mT.shape), grad.flatten(2).mT)
    return slab.unflatten(1, (sum(h * w for h, w in pairs(bins)), *kernel))


def _why_not(backend, tensor, size, kernel, outputs, bins, padding):
    if backend in ("composed", "reference"):
        return None
    if tensor.dtype not in DTYPES:
        return f"no kernel for {tensor.dtype}"
    sides = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    lines = max(sum(bins[axis::2]) * kernel[axis] for axis in (0, 1))
    cells = sum(h * w for h, w in pairs(bins)) * kernel[0] * kernel[1]
    most = max(sides[0] * sides[1], lines, cells, outputs)
    if most >= MOST_ON_GPU:
        return f"outputs, padded pixels, and cells times taps must be below {MOST_ON_GPU}, got {most}"
    if backend == "native" and len(bins) > 2 * MOST_CUDA_PRIORS:
        return f"the CUDA kernel takes up to {MOST_CUDA_PRIORS} priors, got {len(bins) // 2}"
    return None


def _why_not_forward(backend, input, weight, slab, bias, bins, padding, align_corners, channels_last):
    outputs, channels, *kernel = weight.shape
    if backend == "native" and (channels + 8) * kernel[0] * kernel[1] >= MOST_ON_GPU:
        return f"channels times taps must be below {MOST_ON_GPU}, got {channels * kernel[0] * kernel[1]}"
    return _why_not(backend, input, input.shape[2:], kernel, outputs, bins, padding)


def _why_not_backward_slab(backend, grad, bins, kernel, padding, size, align_corners):
    return _why_not(backend, grad, size, kernel, grad.shape[1], bins, padding)


_op = dispatch.register(SCHEMA, reference, composed=composed, native=("cuda",), why_not=_why_not_forward)
_backward_slab = dispatch.register(
    BACKWARD_SLAB,
    backward_slab_reference,
    composed=backward_slab_composed,
    native=("cuda",),
    why_not=_why_not_backward_slab,
)


class _PyramidConv(torch.autograd.Function):
    """priors: joined. `how`: (bins, padding, align_corners). channels: of the input and of each prior."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, priors, bias, how, channels, channels_last):
        own, slab = _halves(weight, priors, how[0], channels)
        return _op(input, own, slab, bias, *how, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, priors, _, ctx.how, ctx.channels, _ = inputs
        ctx.save_for_backward(input, weight, priors)

    @staticmethod
    def backward(ctx, grad):
        input, weight, priors = ctx.saved_tensors
        for_input, for_weight, for_priors, for_bias = ctx.needs_input_grad[:4]
        (bins, padding, _), (own, *others) = ctx.how, ctx.channels
        of_input, of_own, of_bias = _convolution_backward(
            grad, input, weight[:, :own], padding, (for_input, for_weight, for_bias)
        )
        of_weight, of_priors = None, []
        if for_weight:
            of_weight = _empty(weight, grad)  # filled part by part: whole and parts together are twice as large
            of_weight[:, :own].copy_(of_own)
            del of_own
        if for_weight or for_priors:
            of_slab = _BackwardSlab.apply(grad, ctx.how, weight.shape[2:], input.shape[2:])
            start = own
            for of_prior, of_part in slab_gradients(of_slab, priors, weight[:, own:], bins, others):
                of_priors.append(of_prior)
                if for_weight:
                    of_weight[:, start : start + of_part.shape[1]].copy_(of_part)
                start += of_part.shape[1]
        return of_input, of_weight, torch.cat(of_priors, 1) if for_priors else None, of_bias, None, None, None


def _empty(weight, grad):
    """In the weight's memory format, and mapped by torch.vmap where grad is."""
    o, c, kh, kw = weight.shape
    return (
        grad.new_empty(o, kh, kw, c).permute(0, 3, 1, 2) if is_channels_last(weight) else grad.new_empty(o, c, kh, kw)
    )


def _halves(weight, priors, bins, channels):
    """What the raw op takes: the weight of the input, and the slab."""
    own, *others = channels
    return weight[:, :own], slab_of(priors, weight[:, own:], bins, others)


def _convolution_backward(grad, input, weight, padding, wanted):
    """PyTorch's own gradients of input, weight and bias; None where not wanted."""
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(
        grad, input, weight, weight.shape[:1], (1, 1), padding, (1, 1), False, (0, 0), 1, wanted
    )


class _BackwardSlab(torch.autograd.Function):
    """Linear in grad, with a plain matrix product as its transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, how, kernel, size):
        bins, padding, align_corners = how
        return _backward_slab(grad, bins, kernel, padding, size, align_corners)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, *ctx.how = inputs
        ctx.grad_size = grad.shape[2:]

    @staticmethod
    def backward(ctx, v):
        (bins, padding, align_corners), kernel, size = ctx.how
        matrix = interpolation_matrix(bins, size, kernel, padding, align_corners, v.dtype, v.device)
        return (matrix @ v.flatten(1, 3)).mT.unflatten(2, ctx.grad_size), None, None, None


def pyramid_conv2d(input, priors, weight, bias=None, padding=1, align_corners=False):
    """Convolution, of stride 1, of (N, C, H, W) and priors (N, R, h, w), each upsampled to H x W: (N, O, H', W').

    input, priors  float32, float16, bfloat16 or float64, one dtype; any strides, N may be 0. R, h and w may differ
    weight         (O, C + sum of the priors' R, kh, kw), in the order input, priors
    bias           (O,)
    padding        one int or two, as in F.conv2d
    align_corners  as in F.interpolate

    The result has the input's memory format. Differentiable any number of times in input, priors, weight and bias. The
    same bits on every run, but on a GPU the gradients of input and weight, PyTorch's own, are so only with
    torch.backends.cudnn.deterministic. Under autocast it runs in autocast's dtype, as F.conv2d does. NaN or inf in one
    cell of a prior may reach all pixels of that image. Priors of more than 256 cells together are upsampled after all.
    Raises TypeError or ValueError for wrong arguments.
    """
    if not isinstance(priors, (tuple, list)):
        raise TypeError(f"pyramid_conv2d: priors must be a list of tensors, got {type(priors).__name__}")
    input, weight, bias, *priors = autocast(input, weight, bias, *priors)
    padding = _pair(padding)
    named = ("input", input, "NCHW"), ("weight", weight, "OCyx"), *given(("bias", bias, "O"))
    of_priors = [(f"priors[{i}]", prior, "NRhw") for i, prior in enumerate(priors)]
    check_tensors("pyramid_conv2d", *named, *of_priors, filled="from 1 long on")
    _check_shapes(input, weight, bias, priors, padding)
    bins = tuple(side for prior in priors for side in prior.shape[2:])
    cells = sum(prior.shape[2] * prior.shape[3] for prior in priors)
    if torch.jit.is_tracing():  # to which sizes are tensors
        interpolate = functools.partial(F.interpolate, mode="bilinear")
        return _upsampled(input, priors, weight, bias, padding, align_corners, interpolate)
    if not 0 < cells <= MOST_CELLS:
        return _upsampled(input, priors, weight, bias, padding, align_corners, upsample_bilinear)
    channels = [x.shape[1] for x in (input, *priors)]
    how, channels_last = (bins, padding, align_corners), is_channels_last(input)
    if torch.compiler.is_exporting():  # PyTorch's own ops, right for all sizes
        own, slab = _halves(weight, join(priors), bins, channels)
        return _convolved(input, own, slab, bias, *how, channels_last, interpolation_matrix)
    return _PyramidConv.apply(input, weight, join(priors), bias, how, channels, channels_last)


def _upsampled(input, priors, weight, bias, padding, align_corners, upsample):
    """The convolution of the concatenation."""
    upsampled = [upsample(prior, input.shape[2:], align_corners=align_corners) for prior in priors]
    return F.conv2d(torch.cat([input, *upsampled], 1), weight, bias, padding=padding)


def _check_shapes(input, weight, bias, priors, padding):
    for i, prior in enumerate(priors):
        if prior.shape[0] != input.shape[0]:
            wanted = f"{input.shape[0]} images as input has"
            raise ValueError(f"pyramid_conv2d: priors[{i}] must be of {wanted}, got {tuple(prior.shape)}")
    channels = [x.shape[1] for x in (input, *priors)]
    if weight.shape[1] != sum(channels):
        wanted = f"(O, {' + '.join(map(str, channels))}, kh, kw) for the channels of input and priors"
        raise ValueError(f"pyramid_conv2d: weight must be {wanted}, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"pyramid_conv2d: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    sizes = zip(input.shape[2:], weight.shape[2:], padding, strict=True)
    if any(n + 2 * p < k for n, k, p in sizes):
        wanted = f"for an output of at least 1 x 1 of an input of {input.shape[2]} x {input.shape[3]}"
        kernel = f"{weight.shape[2]} x {weight.shape[3]}"
        raise ValueError(f"pyramid_conv2d: padding must be {wanted} and a kernel of {kernel}, got {padding}")


def _pair(padding):
    pair = tuple(padding) if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair):
        raise ValueError(f"pyramid_conv2d: padding must be an int or two, from 0 on, got {padding!r}")
    return pair
