"""How the cells of all bins cut an axis: the geometry of the kernels of pyramid_pool.

Of n pixels, cell i of a bin of b holds those from floor(i n / b) to ceil((i + 1) n / b) - 1. The first pixels and the
ends of all bins' cells are edges; they cut the axis into segments that no cell divides. So do `cuts` even pieces more,
for the sake of more programs. An edge of several bins counts several times: the segments between are empty. That
leaves a closed form for the number of a pixel's segment, so that no kernel needs a table.

BINS is h0, w0, h1, w1, ...; AXIS is 0 for rows and 1 for columns. Products of pixels and cells of one axis are int32.
Programs take such segments of rows, and blocks of columns and of channels.
"""

import triton
import triton.language as tl

PROGRAMS = 528  # four for each multiprocessor of an H200: what a launch needs to have enough loads on their way
LEAST_ROWS = 4  # in a piece of a segment: fewer are not worth what a program leaves of each cell


def config(channels_last, channels, width):
    """Blocks of 2048 pixels, 16 a thread. In channels_last, 64 channels are whole cache lines of any dtype."""
    block_x = min(triton.next_power_of_2(width), 32 if channels_last else 128)
    block_c = min(triton.next_power_of_2(channels), 64 if channels_last else 2048 // block_x)
    return {"BLOCK_C": block_c, "BLOCK_X": block_x, "num_warps": 4, "maxnreg": 255, "enable_fp_fusion": True}


def segment_count(n, bins, cuts):
    """How many segments an axis has; `bins` are of that axis alone. The last number of segment_of, and one."""
    return cuts + sum((b - 1) * (1 if n % b == 0 else 2) for b in (min(b, n) for b in bins))


@triton.jit
def segment_of(y, n, cuts, BINS: tl.constexpr, AXIS: tl.constexpr):
    """The number of the segment that holds pixel y: of the edges from 1 to y."""
    number = y * cuts // n
    for k in tl.static_range(AXIS, len(BINS), 2):
        b = tl.minimum(BINS[k], n)  # more cells than pixels have the same edges: all
        number += y * b // n  # cells that end
        number += tl.where(n % b == 0, 0, (y * b + b - 1) // n)  # cells that begin, unless where another ends
    return number


@triton.jit
def pixels_of_segment(segment, n, cuts, BINS: tl.constexpr, AXIS: tl.constexpr):
    """(begin, end)"""
    BLOCK: tl.constexpr = 128
    begin = segment * 0
    end = segment * 0
    for first in range(0, n, BLOCK):
        y = first + tl.arange(0, BLOCK)
        number = segment_of(y, n, cuts, BINS, AXIS)
        begin += tl.sum(((number < segment) & (y < n)).to(tl.int32), axis=0)
        end += tl.sum(((number <= segment) & (y < n)).to(tl.int32), axis=0)
    return begin, end


@triton.jit
def pixels_of_cell(i, n, b):
    """(begin, end)"""
    return i * n // b, ((i + 1) * n + b - 1) // b


@triton.jit
def cells_of_pixel(y, n, b):
    """(begin, end)"""
    return y * b // n, ((y + 1) * b + n - 1) // n


@triton.jit
def most_cells_of_a_pixel(n, b):
    return (b + n - 1) // n + (n % b != 0).to(tl.int32)


def shares(shape, bins, constants):
    """(cuts, segments, blocks of columns, blocks of channels): how programs share an input of such a shape."""
    n, c, h, w = shape
    blocks = triton.cdiv(w, constants["BLOCK_X"]), triton.cdiv(c, constants["BLOCK_C"])
    wanted = triton.cdiv(PROGRAMS, max(n * blocks[0] * blocks[1], 1))
    is_enough = segment_count(h, bins[::2], 1) >= wanted
    cuts = 1 if is_enough else max(min(wanted, h // LEAST_ROWS), 1)
    return cuts, segment_count(h, bins[::2], cuts), *blocks
