"""The matrix of bilinear interpolation that a convolution's taps read."""

import torch

from fastseg.ops.kept import kept
from fastseg.ops.pyramid_pool import pairs

MOST_MATRICES = 8  # of 6.5 MB each for PSPNet at 473 x 473


def interpolation_matrix(bins, size, kernel, padding, align_corners, dtype, device):
    """(H' W', S kh kw): the weight M[s, y + a - p, x + b - q] of row (y, x), column (s, a, b), rounded once.

    A pure function of the sizes, which may be symbolic. A cell's weight is a product of one by rows and one by columns.
    """
    exact = torch.promote_types(dtype, torch.float32)
    axes = zip(_places(bins, device), size, kernel, padding, strict=True)
    rows, columns = (_taps(*place, *lengths, align_corners).to(exact) for place, *lengths in axes)
    weights = rows[:, None, :, :, None] * columns[:, :, None]  # (H', W', S, kh, kw)
    return weights.to(dtype).flatten(2).flatten(0, 1)


def _places(bins, device):
    """Of all cells in a row ((row, rows of its bin), (column, columns of its bin)), each (S,)."""
    numbers = [(torch.arange(h * w, device=device), h, w) for h, w in pairs(bins)]
    rows = [(cell // w, torch.full_like(cell, h)) for cell, h, w in numbers]
    columns = [(cell % w, torch.full_like(cell, w)) for cell, h, w in numbers]
    return [[torch.cat(part) for part in zip(*axis, strict=True)] for axis in (rows, columns)]


def _taps(place, cells, pixels, taps, padding, align_corners):
    """(outputs, S, taps): along one axis, the weight of a cell at the pixel that a tap reads; 0 beyond the edges.

    The weight falls linearly from 1 at a cell's centre to 0 at its neighbours'.
    """
    outputs, device = pixels + 2 * padding - taps + 1, place.device
    pixel = torch.arange(outputs, device=device)[:, None] + torch.arange(taps, device=device) - padding
    pixel, place, cells = pixel[:, None].double(), place[:, None], cells[:, None]
    if align_corners:
        centre = pixel * (cells - 1) / torch.sym_max(pixels - 1, 1)
    else:
        centre = ((pixel + 0.5) * cells / pixels - 0.5).clamp_min(0).minimum(cells - 1)
    inside = (pixel >= 0) & (pixel < pixels)
    return (1 - (centre - place).abs()).clamp_min(0) * inside


def cached_matrix(bins, size, kernel, padding, align_corners, dtype, device):
    """interpolation_matrix, from a few that are kept."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():  # which may not wait for a copy
        return interpolation_matrix(bins, size, kernel, padding, align_corners, dtype, device)
    how = (tuple(part) for part in (bins, size, kernel, padding))
    return _kept(*how, align_corners, dtype, device)


@kept(maxsize=MOST_MATRICES)
def _kept(bins, size, kernel, padding, align_corners, dtype, device):
    return interpolation_matrix(bins, size, kernel, padding, align_corners, dtype, "cpu").to(device)
