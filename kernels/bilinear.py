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
        s = tl.fma(o.to(tl.float32) + 0.5, scale, -0.5)
    return s


@triton.jit
def fraction(o, low, scale, ALIGN_CORNERS: tl.constexpr):
    """The weight of input low + 1 for output o; input low weighs 1 - fraction."""
    t = source(o, scale, ALIGN_CORNERS) - low.to(tl.float32)
    return tl.minimum(tl.maximum(t, 0.0), 1.0)


@triton.jit
def first_output_at(i, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """The first output with source >= i. The division is off by less than one: start one early."""
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
def low_index(o, n_in, scale, ALIGN_CORNERS: tl.constexpr):
    return tl.minimum(tl.maximum(source(o, scale, ALIGN_CORNERS), 0.0).to(tl.int32), n_in - 1)


@triton.jit
def neighbour(low, n_in, n_out):
    """The other input that outputs at low read: low itself at the end, and where the axis keeps its size."""
    return tl.minimum(low + (n_in != n_out).to(tl.int32), n_in - 1)


@triton.jit
def span_inputs(index, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """(low, high) of a span."""
    if n_in > n_out:
        low = low_index(index, n_in, scale, ALIGN_CORNERS)
    else:
        cell = index if ALIGN_CORNERS else index - 1
        low = tl.minimum(tl.maximum(cell, 0), n_in - 1)
    return low, neighbour(low, n_in, n_out)


@triton.jit
def span(index, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """(low, high, begin, end) of a span: outputs [begin, end) between inputs low and high. Empty past the last span."""
    if n_in > n_out:
        begin = tl.minimum(index, n_out)
        end = tl.minimum(index + 1, n_out)
    else:
        cell = index if ALIGN_CORNERS else index - 1
        begin = first_output_at(cell, n_in, n_out, scale, ALIGN_CORNERS)
        end = first_output_at(cell + 1, n_in, n_out, scale, ALIGN_CORNERS)
    low, high = span_inputs(index, n_in, n_out, scale, ALIGN_CORNERS)
    return low, high, begin, end


@triton.jit
def outputs_of(i, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """(begin, middle, end): outputs [begin, middle) have input i for their high neighbour, [middle, end) for the low.

    For any scale, and weights of 0 too. The low neighbour may be the high one as well: where neighbour(i) is i.
    """
    if n_in == n_out:
        begin = i
        middle = i
        end = i + 1
    else:
        # Outputs before the first centre are between inputs 0 and 1 too.
        begin = tl.where(i <= 1, 0, first_output_at(i - 1, n_in, n_out, scale, ALIGN_CORNERS))
        middle = tl.where(i <= 0, 0, first_output_at(i, n_in, n_out, scale, ALIGN_CORNERS))
        end = first_output_at(i + 1, n_in, n_out, scale, ALIGN_CORNERS)
    return begin, middle, end


@triton.jit
def first_span_of(i, n_in, n_out, scale, ALIGN_CORNERS: tl.constexpr):
    """Of three consecutive spans, the first: no other can have input i for a neighbour."""
    if n_in > n_out:
        first, _, _ = outputs_of(i, n_in, n_out, scale, ALIGN_CORNERS)
    else:
        first = i - 1
    return first
