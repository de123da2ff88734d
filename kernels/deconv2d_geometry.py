"""Which taps join which pixels in deconv2d, and where those lie in memory.

Along an axis with kernel K, stride S and dilation D, input i meets output y by tap k where i S + k D = y + top. The
outputs of a phase e share their taps k = e, e + STEP, ...: STEP = S / gcd(S, D) lies between two of them, as only then
do their distances k D differ by whole strides. There are S phases; those from STEP on have no taps.
"""

import math

import triton
import triton.language as tl


def steps(stride, dilation):
    """STEP of both axes."""
    return tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))


def geometry(kernel, stride, dilation):
    """Constants of every kernel."""
    return {"K": tuple(kernel), "S": tuple(stride), "D": tuple(dilation)}


def strides(tensor, dims):
    """Of a tensor that may be None."""
    return (0,) * dims if tensor is None else tensor.stride()


@triton.jit
def offset_of_phase(e, D: tl.constexpr, STEP: tl.constexpr):
    """How far from an input's first output, tap 0's, those of phase e are: e if undilated."""
    if D == 1:
        offset = e
    else:
        offset = e % STEP * D + e // STEP
    return offset


@triton.jit
def rows_of_phase(e, top, K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, STEP: tl.constexpr):
    """(y, a, taps): the first output row y >= 0 of phase e, the input row that its tap ky = e meets, how many taps.

    Tap ky = e + t STEP meets input row a - t D STEP / S; S output rows further down, one input row further down.
    """
    offset = offset_of_phase(e, D, STEP)
    y = ((offset - top) % S + S) % S
    taps = tl.where(e < STEP, tl.maximum(K - e + STEP - 1, 0) // STEP, 0)
    return y, (y + top - offset) // S, taps


@triton.jit
def offset_of(image, y, x, strides):
    """Of a pixel, in numbers, from the first pixel of the same channel in the first image."""
    return image * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
