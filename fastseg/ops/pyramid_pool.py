"""Adaptive pooling of one input to several grids, from one reading of it.

Cell (i, j) of a bin of h x w cells pools, of an input of H x W pixels, the rectangle R(i, j) of the rows from
floor(i H / h) to ceil((i + 1) H / h) - 1 and the columns likewise; cells overlap where h does not divide H.
    output[n, c, s] = mean or maximum of input[n, c, y, x] over (y, x) in R(s)
where s goes through the cells of all bins: bin after bin, and the cells of one row by row. Sums are float32, divided by
the exact number of pixels and rounded once. Of equal maxima the first counts; a NaN is larger than all else, and of
several the last counts. The gradient of a pixel gathers from the cells that hold it,
    grad_input[n, c, y, x] = sum over s with (y, x) in R(s) of grad[n, c, s] / |R(s)|        for means
    grad_input[n, c, y, x] = sum over s with indices[n, c, s] = y W + x of grad[n, c, s]     for maxima
in float32 and in a fixed order, of s: no atomics, the same bits on every run.

Equivalent to:
    [F.adaptive_avg_pool2d(input, b) for b in bins]      or      [F.adaptive_max_pool2d(input, b) for b in bins]
with float32 sums whatever the dtype. The pyramid of PSPNet: arXiv 1612.01105, section 3.2.
"""

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.layout import is_channels_last, laid_out
from fastseg.ops.precision import widened
from fastseg.ops.recording import is_recording

# bins: h0, w0, h1, w1, ... . output: (N, C, S) with the strides of a dense (N, C, S), or with `channels_last` of a
# dense (N, S, C). indices: of the maxima, int64, with output's shape and strides; of shape (0,) for means.
SCHEMA = "pyramid_pool(Tensor input, SymInt[] bins, bool max, bool channels_last) -> (Tensor output, Tensor indices)"
# size: the input's (H, W).
BACKWARD = (
    "pyramid_pool_backward(Tensor grad, Tensor indices, SymInt[] bins, bool max, SymInt[] size, bool channels_last) "
    "-> Tensor"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MODES = ("avg", "max")
MOST_ON_GPU = 2**30  # of what the GPU kernels count in int32
MOST_CUDA_BINS = 64  # in the 4 KB of a launch's arguments


def reference(input, bins, max, channels_last):
    pool = F.adaptive_max_pool2d if max else F.adaptive_avg_pool2d
    pooled = [pool(widened(input), size, *([True] if max else [])) for size in pairs(bins)]
    if not max:
        return _in_a_row(pooled, channels_last).to(input.dtype), input.new_empty(0, dtype=torch.int64)
    outputs, indices = zip(*pooled, strict=True)
    return _in_a_row(outputs, channels_last).to(input.dtype), _in_a_row(indices, channels_last)


def backward_reference(grad, indices, bins, max, size, channels_last):
    wide, shape = widened(grad), (*grad.shape[:2], *size)
    if max:
        total = wide.new_zeros(shape).flatten(2).scatter_add(2, indices, wide).view(shape)
    else:
        unread = wide.new_empty(shape)
        parts = (part.contiguous() for part in split(wide, bins))
        total = sum(torch.ops.aten._adaptive_avg_pool2d_backward(part, unread) for part in parts)
    return laid_out(total.to(grad.dtype), channels_last)


def pairs(bins):
    """(h, w) of every bin."""
    return tuple(zip(bins[::2], bins[1::2], strict=True))


def split(cells, bins):
    """(N, C, S) -> [(N, C, h, w) of every bin], views."""
    parts = cells.split([h * w for h, w in pairs(bins)], 2)
    return [part.unflatten(2, size) for part, size in zip(parts, pairs(bins), strict=True)]


def _in_a_row(pooled, channels_last):
    """The inverse of split, with the strides that the schema asks for."""
    cells = torch.cat([part.flatten(2) for part in pooled], 2)
    return cells.mT.contiguous().mT if channels_last else cells.contiguous()


def _why_not(backend, tensor, size, bins):
    if backend == "reference":
        return None
    if tensor.dtype not in DTYPES:
        return f"no kernel for {tensor.dtype}"
    is_cuda = backend == "native" and tensor.device.type == "cuda"
    if backend == "triton" or is_cuda:
        cells = sum(h * w for h, w in pairs(bins))
        most = max(cells, *((b + 1) * (size[k % 2] + 1) for k, b in enumerate(bins)), is_cuda * size[0] * size[1])
        if most >= MOST_ON_GPU:
            return f"cells, pixels times cells of an axis, and for CUDA pixels must be below {MOST_ON_GPU}, got {most}"
    if is_cuda and len(bins) > 2 * MOST_CUDA_BINS:
        return f"the CUDA kernel takes up to {MOST_CUDA_BINS} bins, got {len(bins) // 2}"
    return None


def _why_not_forward(backend, input, bins, max, channels_last):
    return _why_not(backend, input, input.shape[2:], bins)


def _why_not_backward(backend, grad, indices, bins, max, size, channels_last):
    return _why_not(backend, grad, size, bins)


_op = dispatch.register(SCHEMA, reference, why_not=_why_not_forward)
_backward_op = dispatch.register(BACKWARD, backward_reference, why_not=_why_not_backward)


class _Pool(torch.autograd.Function):
    """(output, indices)"""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, bins, max, channels_last):
        return _op(input, bins, max, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, *ctx.how, ctx.channels_last = inputs
        ctx.size = input.shape[2:]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (indices,) = ctx.saved_tensors
        return _Gather.apply(grad, indices, *ctx.how, ctx.size, ctx.channels_last), None, None, None


class _Gather(torch.autograd.Function):
    """The transpose of _Pool, linear in grad; its own transpose pools the means, or takes the same elements, anew."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, indices, bins, max, size, channels_last):
        return _backward_op(grad, indices, bins, max, size, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, indices, ctx.bins, ctx.max, _, ctx.channels_last = inputs
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, v):
        (indices,) = ctx.saved_tensors
        if ctx.max:
            cells = v.flatten(2).gather(2, indices)
        else:
            cells, _ = _Pool.apply(v, ctx.bins, False, ctx.channels_last)
        return cells, None, None, None, None, None


def pyramid_pool(input, bins=(1, 2, 3, 6), mode="avg"):
    """(N, C, H, W) pooled to a list with (N, C, h, w) for each of `bins`, ints (h = w) or pairs (h, w), of any size.

    input  float32, float16, bfloat16 (float64 runs the reference); any strides, N may be 0
    mode   "avg" or "max"

    The results have the input's dtype (under autocast too) and its order of channels in memory; they are views of one
    tensor. Differentiable any number of times. Raises TypeError or ValueError for wrong arguments.

    In a model that is exported or traced (torch.export, torch.onnx, torch.jit.trace) it is PyTorch's own matrix
    products, or masked maxima, right for every size of input; there, means with a NaN or inf under them spread it over
    their row and column of cells.
    """
    if not isinstance(input, torch.Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, torch.Tensor) else type(input).__name__
        raise TypeError(f"pyramid_pool: input must be a floating-point tensor, got {got}")
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"pyramid_pool: input must be (N, C, H, W) with C, H, W >= 1, got {tuple(input.shape)}")
    if mode not in MODES:
        raise ValueError(f"pyramid_pool: mode must be one of {', '.join(MODES)}, got {mode!r}")
    sizes = _flat(bins)
    if is_recording(input):
        return [_exported(input, size, mode) for size in pairs(sizes)]
    output, _ = _Pool.apply(input, sizes, mode == "max", is_channels_last(input))
    return split(output, sizes)


def _flat(bins):
    sizes = bins if isinstance(bins, (tuple, list)) else ()
    sizes = [tuple(size) if isinstance(size, (tuple, list)) else (size, size) for size in sizes]
    flat = tuple(side for size in sizes for side in size)
    if not sizes or any(len(size) != 2 for size in sizes) or not all(isinstance(n, int) and n >= 1 for n in flat):
        raise ValueError(f"pyramid_pool: bins must be a list of ints or pairs (h, w), from 1 on, got {bins!r}")
    return flat


def _exported(input, size, mode):
    rows, columns = (_covers(*lengths, input.device) for lengths in zip(size, input.shape[2:], strict=True))
    # torch.export must know sizes of which strides are asked: no step here looks at those of a transposed tensor, as
    # matmul does, too, to fold the axes of maps that share a matrix.
    if mode == "max":
        input = torch.where(columns, input.unsqueeze(3), -torch.inf).amax(4)
        return torch.where(rows.unsqueeze(2), input.unsqueeze(2), -torch.inf).amax(3)
    wide = widened(input)
    left, right = (cover.to(wide.dtype).expand(*wide.shape[:2], -1, -1) for cover in (rows, columns))
    sums = left @ wide @ right.mT
    return (sums / (rows.sum(1, keepdim=True) * columns.sum(1))).to(input.dtype)


def _covers(cells, pixels, device):
    """(cells, pixels): whether [pixel, pixel + 1) meets [cell, cell + 1) * pixels / cells."""
    cell, pixel = torch.arange(cells, device=device)[:, None], torch.arange(pixels, device=device)
    return ((pixel + 1) * cells > cell * pixels) & (pixel * cells < (cell + 1) * pixels)
