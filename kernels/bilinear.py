"""Bilinear interpolation along one axis for Triton kernels: the twin of csrc/bilinear.h, same names, same rounding.

An axis is (in, out, scale, ALIGN_CORNERS). Its outputs are cut into spans that share their two input neighbours: cells
when scaling up (with one more before the first centre in half-pixel coordinates), single outputs when scaling down.
"""

import numpy as np
import triton
import triton.language as tl


def scale(n_in, n_out, align_corners):
    """Input steps per output step, rounded to float32 as PyTorch does."""
    if align_corners:
        return float(np.float32(n_in - 1) / np.float32(n_out - 1)) if n_out > 1 else 0.0
    return float(np.float32(n_in) / np.float32(n_out))


def span_count(n_in, n_out, align_corners):
    """How many spans an axis has."""
    return n_out if n_in > n_out else n_in + (0 if align_corners else 1)


@triton.jit
def source(o, scale, ALIGN_CORNERS: tl.constexpr):
    if ALIGN_CORNERS:
        s = o.to(tl.float32) * scale
    else:
        s = tl.fma(o.to(tl.float32) + 0.5, scale + tl.zeros_like(o).to(tl.float32), -0.5)
    return s


@triton.jit
def fraction(o, low, scale, ALIGN_CORNERS: tl.constexpr):
    """The weight of input low + 1 for output o; input low weighs 1 - fraction."""
    t = source(o, scale, ALIGN_CORNERS) - low.to(tl.float32)
    return tl.minimum(tl.maximum(t, 0.0), 1.0)


@triton.jit
def first_output_at(i, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """The first output with source >= i, when scaling up. The division is off by less than one: start one early."""
    step = tl.maximum(scale, 1e-30)  # 0 with a single input, whose two bounds do not need it
    if ALIGN_CORNERS:
        guess = i.to(tl.float32) / step
    else:
        guess = (i.to(tl.float32) + 0.5) / step - 0.5
    guess = tl.minimum(tl.maximum(guess, 1.0), n_out.to(tl.float32))
    o = guess.to(tl.int32) - 1
    for _ in tl.static_range(3):
        o += ((o < n_out) & (source(o, scale, ALIGN_CORNERS) < i.to(tl.float32))).to(tl.int32)
    first: tl.constexpr = 0 if ALIGN_CORNERS else -1
    o = tl.where(i <= first, 0, o)
    return tl.where(i >= n_in, n_out, o)


@triton.jit
def span(index, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """(low, high, begin, end) of a span: outputs [begin, end) between inputs low and high. Empty past the last span."""
    if n_in > n_out:
        low = tl.maximum(source(index, scale, ALIGN_CORNERS), 0.0).to(tl.int32)
        begin = tl.minimum(index, n_out)
        end = tl.minimum(index + 1, n_out)
    else:
        cell = index if ALIGN_CORNERS else index - 1
        low = tl.maximum(cell, 0)
        begin = first_output_at(cell, n_in, n_out, scale, ALIGN_CORNERS)
        end = first_output_at(cell + 1, n_in, n_out, scale, ALIGN_CORNERS)
    low = tl.minimum(low, n_in - 1)
    high = tl.minimum(low + (n_in != n_out).to(tl.int32), n_in - 1)  # kept size: each input is its own neighbour
    return low, high, begin, end
