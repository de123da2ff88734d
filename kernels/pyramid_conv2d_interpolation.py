"""The interpolation weights that the kernels of pyramid_conv2d multiply by, computed in registers from sizes alone."""

import triton
import triton.language as tl

from fastseg.kernels.bilinear import source


@triton.jit
def hat(pixel, cell, cells, pixels, scale, ALIGN_CORNERS: tl.constexpr):
    """The weight of a cell at a pixel along one axis: 1 at the cell's centre, 0 at its neighbours' and outside."""
    last = (cells - 1).to(tl.float32)
    centre = tl.minimum(tl.maximum(source(pixel, scale, ALIGN_CORNERS), 0.0), last)
    weight = tl.maximum(1.0 - tl.abs(centre - cell.to(tl.float32)), 0.0)
    return tl.where((pixel >= 0) & (pixel < pixels), weight, 0.0)


@triton.jit
def interpolation(
    y, x, k, H, W, padding, scales, BINS: tl.constexpr, KERNEL: tl.constexpr, ALIGN_CORNERS: tl.constexpr
):
    """M[s, y + a - p, x + b - q] of k = (s, a, b), broadcast. 0 where there is no such s."""
    s = k // (KERNEL[0] * KERNEL[1])
    h, w, i, j = s * 0, s * 0, s * 0, s * 0
    row_scale, column_scale = s * 0.0, s * 0.0
    before = 0
    for bin in tl.static_range(0, len(BINS), 2):
        inside = s >= before
        h, w = tl.where(inside, BINS[bin], h), tl.where(inside, BINS[bin + 1], w)
        i = tl.where(inside, (s - before) // BINS[bin + 1], i)
        j = tl.where(inside, (s - before) % BINS[bin + 1], j)
        row_scale = tl.where(inside, scales[bin], row_scale)
        column_scale = tl.where(inside, scales[bin + 1], column_scale)
        before += BINS[bin] * BINS[bin + 1]
    tap_y = k // KERNEL[1] % KERNEL[0] - padding[0]
    tap_x = k % KERNEL[1] - padding[1]
    rows = hat(y + tap_y, i, h, H, row_scale, ALIGN_CORNERS)
    return rows * hat(x + tap_x, j, w, W, column_scale, ALIGN_CORNERS)
