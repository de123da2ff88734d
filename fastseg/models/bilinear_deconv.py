"""Labels through a deconvolution that interpolates bilinearly (fastseg/nn/deconv.py), without its output."""

import torch

from fastseg.nn.deconv import bilinear_kernel
from fastseg.ops import upsample_argmax


def is_bilinear(deconv):
    weight, size = deconv.weight, deconv.kernel_size[0]
    if deconv.bias is not None or deconv.stride[0] != (size + 1) // 2:
        return False
    kernel = bilinear_kernel(size, size).to(weight)
    return bool((weight.diagonal() == kernel[..., None]).all() & (weight.count_nonzero() == len(weight) * size**2))


def labels_through(scores, kernel, stride, offset, sides):
    """Labels (N, H, W) of a bilinear deconvolution's output from pixel `offset` on, sides = (H, W), s being even.

    Between its inputs' centres that output is F.interpolate's. Outside of them it is the nearest one's times a weight
    that all classes share, so the label is that of scores continued by copies of their border.
    """
    firsts, sizes = [], []
    for axis, side in enumerate(sides):
        # Output o lies at (2 o - (k - 1)) / 2 s in the input: take the inputs from below the first to above the last.
        below = (2 * offset - kernel + 1) // (2 * stride)
        above = (2 * (offset + side - 1) - kernel + 1) // (2 * stride) + 1
        taken = torch.arange(below, above + 1, device=scores.device).clamp(0, scores.shape[axis + 2] - 1)
        scores = scores.index_select(axis + 2, taken)
        # An even kernel puts s outputs evenly around an input, as F.interpolate does; an odd one puts one on it.
        if kernel % 2 == 0:
            firsts.append(offset - stride // 2 - below * stride)
            sizes.append(stride * len(taken))
        else:
            firsts.append(offset - (stride - 1) - below * stride)
            sizes.append(stride * (len(taken) - 1) + 1)
    labels = upsample_argmax(scores, sizes, align_corners=kernel % 2 == 1)
    (top, left), (height, width) = firsts, sides
    return labels[:, top : top + height, left : left + width].contiguous()
