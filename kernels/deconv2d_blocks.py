"""How the kernels of deconv2d cut their work into blocks, and sums of few results into parts.

A box is a block of pixels of one map, or of several below one another. A part of a sum is one program's; what the
programs write apart is added up by torch, always in the same order.
"""

import triton
import triton.language as tl


def best_block(length, sizes, overhead):
    """The best block to cut a length into, if a block costs as much as `overhead` elements beside its own."""
    return min(sizes, key=lambda size: (triton.cdiv(length, size) * (size + overhead), -size))


def power_of_2(length, least, most):
    return min(max(triton.next_power_of_2(length), least), most)


def box(rows, columns, size, narrowest=1):
    """Sides of the best box of so many pixels: few beyond the map's edges, and few rows, as each costs a division."""

    def cost(width):
        height = size // width
        return triton.cdiv(rows, height) * triton.cdiv(columns, width) * (size + 2 * height)

    width = min((2**i for i in range(size.bit_length()) if 2**i >= narrowest), key=cost)
    return {"BOX_H": size // width, "BOX_W": width}


@triton.jit
def pixels_of(tile, rows, column_blocks, BOX_H: tl.constexpr, BOX_W: tl.constexpr, ALONG_ROWS: tl.constexpr):
    """(image, row, column) of a box of pixels, where the rows of one image follow those of another.

    One column after another, unless ALONG_ROWS: so each warp, that goes along another axis, has few rows to divide.
    """
    offs = tl.arange(0, BOX_H * BOX_W)
    row = offs // BOX_W if ALONG_ROWS else offs % BOX_H
    column = offs % BOX_W if ALONG_ROWS else offs // BOX_H
    row += tile // column_blocks * BOX_H
    return (row // rows).to(tl.int64), row % rows, tile % column_blocks * BOX_W + column
