"""The work of atrous_conv2d as a table of boxes, for kernels that copy pixels as boxes: see atrous_conv2d_tiles.py.

A box of images x rows x columns of the input, TILE pixels, is what the tensor memory accelerator (TMA) of an sm_90
copies at once, with zeros for what lies outside of the image. The weights are one matrix: [rows (branch, tap, c)] x
[outputs], so all branches have as many of these.
"""

import functools

import torch

from fastseg.ops.atrous_conv2d_plan import TILE, executed_work, input_of, regions, tiles
from fastseg.ops.kept import kept

# Pixel (n, y, x) of a box is output  image + n, top + y, left + x  if below the batch, `bottom` and `right`. Tap (i, j)
# of the box reads input  input_y + y + i dilation_y, input_x + x + j dilation_x  and has its weights [c, o] from row
# weight + (i kernel_x + j) C  on.
BOX_FIELDS = (
    "image",
    "top",
    "left",
    "bottom",
    "right",
    "taps_y",
    "taps_x",
    "input_y",
    "input_x",
    "dilation_y",
    "dilation_x",
    "weight",
    "kernel_x",
    "output",  # first output of the block, of the branch's
    "channel",  # the same of the whole result's
)


@kept(maxsize=128)
def box_table(batch, channels, branches, block, box, device):
    """(boxes, 15) int32 on a device, in the order of BOX_FIELDS, those with most taps first; the rest as in tile_table.

    box: (images, rows, columns). Strides are 1.
    """
    found, weight, channel = [], 0, 0
    for rows, columns, outputs in branches:
        for y, x in regions(batch, rows, columns, box):
            corners = torch.cartesian_prod(
                torch.arange(0, batch, box[0]),
                torch.arange(y.start, y.stop, box[1]),
                torch.arange(x.start, x.stop, box[2]),
            ).int()
            image, top, left = corners[:, None].unbind(-1)
            output = torch.arange(0, outputs, block, dtype=torch.int32)
            fields = {
                "image": image,
                "top": top,
                "left": left,
                "bottom": y.stop,
                "right": x.stop,
                "taps_y": y.taps,
                "taps_x": x.taps,
                "input_y": input_of(rows, 0, y.first_tap) + top,
                "input_x": input_of(columns, 0, x.first_tap) + left,
                "dilation_y": rows.dilation,
                "dilation_x": columns.dilation,
                "weight": weight + (y.first_tap * columns.kernel + x.first_tap) * channels,
                "kernel_x": columns.kernel,
                "output": output,
                "channel": output + channel,
            }
            table = torch.empty(len(corners), len(output), len(BOX_FIELDS), dtype=torch.int32)
            for index, field in enumerate(BOX_FIELDS):
                table[:, :, index] = fields[field]
            found.append((y.taps * x.taps, table.flatten(0, 1)))
        weight += rows.kernel * columns.kernel * channels
        channel += outputs
    found.sort(key=lambda region: -region[0])
    return torch.cat([table for _, table in found] or [torch.empty(0, len(BOX_FIELDS), dtype=torch.int32)]).to(device)


def boxes(batch, sides, box):
    """How many boxes all branches have, sides: (rows, columns) of each."""
    return sum(tiles(batch, y, x, box) for side in sides for y, x in regions(batch, *side, box))


@functools.lru_cache(maxsize=1024)
def work(batch, sides, box=None):
    """Executed work over dense work of all branches."""
    dense = [rows.kernel * columns.kernel for rows, columns in sides]
    done = [executed_work(batch, *side, box) * taps for side, taps in zip(sides, dense, strict=True)]
    return sum(done) / sum(dense)


@functools.lru_cache(maxsize=128)
def common_box(batch, sides):
    """(images, rows, columns), powers of 2 with TILE pixels, that executes least for all branches together."""
    lengths = [2**i for i in range(TILE.bit_length())]
    possible = [(n, h, TILE // n // h) for n in lengths for h in lengths if n * h <= TILE]
    return min(possible, key=lambda box: (work(batch, sides, box), box))
