"""The products of priors and their weights, and those of the gradient.

    slab[n, s, a, b, o] = sum_r prior[n, r, s] weight[o, r, a, b]
of every prior in turn. The weights, much larger than all else, are read as they lie in memory; einsum copies them, and
takes 4 to 15 times as long for PSPNet's.

Priors come as one tensor (N, sum of r h w), of each prior flattened; bins are h0, w0, h1, w1, ..., channels the r.
"""

import torch

from fastseg.ops.pyramid_pool import pairs


def join(priors):
    return torch.cat([prior.flatten(1) for prior in priors], 1)


def slab_of(priors, weight, bins, channels):
    """(N, S, kh, kw, O), with weight (O, sum of channels, kh, kw)."""
    images, kernel = priors.shape[0], weight.shape[2:]
    slabs = []
    for columns, part, (h, w) in zip(*_parts(priors, weight, bins, channels), strict=True):
        product = part.flatten(2).mT @ columns  # (O, kh kw, N h w)
        slabs.append(product.unflatten(2, (images, h * w)).unflatten(1, kernel).permute(3, 4, 1, 2, 0))
    return torch.cat(slabs, 1).contiguous()


def gradients(grad_slab, priors, weight, bins, channels):
    """Of every prior in turn, and only when asked for: (of the prior, (N, r h w), of its weight, (O, r, kh, kw))."""
    images, kernel = priors.shape[0], weight.shape[2:]
    grads = grad_slab.split([h * w for h, w in pairs(bins)], 1)
    for grad, columns, part, (h, w) in zip(grads, *_parts(priors, weight, bins, channels), strict=True):
        product = grad.permute(4, 2, 3, 0, 1).flatten(3).flatten(1, 2)  # (O, kh kw, N h w)
        of_columns = part.flatten(2).mT.flatten(0, 1).mT @ product.flatten(0, 1)  # (r, N h w)
        of_prior = of_columns.unflatten(1, (images, h * w)).transpose(0, 1).flatten(1)
        yield of_prior, (columns @ product.mT).unflatten(2, kernel)


def _parts(priors, weight, bins, channels):
    """Of every prior [(r, N h w) ...], [its weight (O, r, kh, kw) ...] and [(h, w) ...]."""
    sizes = [(r, h * w) for r, (h, w) in zip(channels, pairs(bins), strict=True)]
    parts = zip(priors.split([r * cells for r, cells in sizes], 1), sizes, strict=True)
    columns = [part.unflatten(1, size).transpose(0, 1).flatten(1) for part, size in parts]
    return columns, weight.split(channels, 1), pairs(bins)
