"""Deconvolutions that interpolate bilinearly, and labels through one without its output.

Such a deconvolution of kernel k = 2 s or 2 s - 1 and stride s adds input i to output o with the weight
    w(o - s i),      w(x) = max(0, 1 - |x - (k - 1) / 2| / s),
channel by channel, rows and columns alike.
"""

import torch

from fastseg.ops import upsample_argmax


def bilinear_kernel(size):
    """(size, size) weights in float32, of any size: multiples of 1 / (4 stride^2), so exact."""
    stride = (size + 1) // 2
    row = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    return row[:, None] * row


@torch.no_grad()
def fill_bilinear_(weight):
    """A deconvolution's weight (C, C, k, k): every channel interpolates, and goes to no other."""
    weight.zero_()
    weight.diagonal().copy_(bilinear_kernel(weight.shape[-1])[..., None])


def is_bilinear(deconv):
    weight, size = deconv.weight, deconv.kernel_size[0]
    if deconv.bias is not None or deconv.stride[0] != (size + 1) // 2:
        return False
    kernel = bilinear_kernel(size).to(weight)
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
