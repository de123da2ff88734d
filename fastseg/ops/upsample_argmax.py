"""Class labels straight from low-resolution logits, without the upsampled logits.

    labels[n, y, x] = argmax_k  sum_{i in {0,1}, j in {0,1}}  u_i(y) v_j(x) input[n, k, low(y) + i, low(x) + j]

with the weights u = (1 - t, t), t = s(y) - low(y), low(y) = floor(s(y)) and the source row
    s(y) = max(0, (y + 0.5) h / H - 0.5)      or, with align_corners,      s(y) = y (h - 1) / (H - 1)
(v and s(x) likewise): bilinear interpolation as in F.interpolate, in float32 whatever the input's dtype.

Every output between the same four input pixels shares its corners (a *cell*). u and v are non-negative and sum to 1,
so in a cell max_corners(k) < max_l min_corners(l) proves that class k wins nowhere: kernels prune by it.

Equivalent to:
    F.interpolate(input.float(), size, mode="bilinear", align_corners=align_corners).argmax(1).to(dtype)
up to ties: labels can differ where the two best classes are equal to within float32 rounding.
"""

import torch
import torch.nn.functional as F

from fastseg import dispatch
from fastseg.ops.precision import widened

SCHEMA = "upsample_argmax(Tensor input, SymInt[] size, bool align_corners, ScalarType dtype) -> Tensor"
INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LABEL_DTYPES = {
    torch.uint8: 2**8,
    torch.int32: 2**31,
    torch.int64: 2**63,
}  # and how many classes they can name
LONGEST_SIDE = 2**22  # float32 coordinates of the GPU kernels are exact enough up to here
MOST_CLASSES = 48 * 1024  # of the CUDA kernel: one bit each in shared memory, for 8 warps


def reference(input, size, align_corners, dtype):
    full = F.interpolate(widened(input), size, mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(dtype).contiguous()


def why_not(backend, input, size, align_corners, dtype):
    if backend == "reference":
        return None
    if input.dtype not in INPUT_DTYPES:
        return f"no kernel for {input.dtype}"
    if (backend == "triton" or input.is_cuda) and max(*input.shape[2:], *size) > LONGEST_SIDE:
        return f"no kernel for sides over {LONGEST_SIDE}"
    if backend == "native" and input.is_cuda and input.shape[1] > MOST_CLASSES:
        return f"no kernel for more than {MOST_CLASSES} classes"
    return None


_op = dispatch.register(SCHEMA, reference, why_not=why_not)


def upsample_argmax(input, size, align_corners=False, dtype=None):
    """Labels (N, H, W) of logits (N, C, h, w), interpolated bilinearly to `size` = (H, W) or one int for both.

    input          float32, float16, bfloat16 (float64 runs the reference); any strides, N may be 0
    align_corners  as in F.interpolate: True puts the corner pixels' centres on each other
    dtype          of the labels: uint8, int32 or int64; None is uint8 up to 256 classes, else int32

    Ties go to the lowest class and NaN counts as the largest value, as in torch.argmax. Not differentiable.
    To index with the labels use labels.long(): PyTorch takes uint8 for a mask.
    Raises TypeError or ValueError for wrong arguments.
    """
    if not isinstance(input, torch.Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, torch.Tensor) else type(input).__name__
        raise TypeError(f"upsample_argmax: input must be a floating-point tensor, got {got}")
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"upsample_argmax: input must be (N, C, h, w) with C, h, w >= 1, got {tuple(input.shape)}")
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, (int, torch.SymInt)) and side >= 1 for side in sides):
        raise ValueError(f"upsample_argmax: size must be an int or two, (H, W), from 1 on, got {size!r}")
    if dtype is None:
        dtype = torch.uint8 if input.shape[1] <= 256 else torch.int32
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"upsample_argmax: dtype must be torch.uint8, torch.int32 or torch.int64, got {dtype}")
    if input.shape[1] > LABEL_DTYPES[dtype]:
        raise ValueError(f"upsample_argmax: dtype {dtype} cannot name {input.shape[1]} classes")
    return _op(input, sides, align_corners, dtype)
