"""The work of atrous_conv2d's GPU kernels as tables: one row of int32 per item, those with most taps first.

A problem is one convolution or several of one input (atrous_pyramid), *branches*, whose outputs lie one after another
along the channels. Kernels know neither taps nor branches but by what a row says. Their weights are one tensor: of each
branch [ky, kx, c, o], dense, one branch after another.
"""

import torch

from fastseg.ops.atrous_conv2d_plan import TILE, axes, branches, input_of, outputs_of, regions, tiles, turned
from fastseg.ops.kept import kept
from fastseg.ops.layout import in_format

# A tile: TILE pixels of one region, and a block of one branch's outputs. Pixel i of the tile is number first + i of the
# region's N height width pixels; at (y, x) of the region, tap (i, j) of the row reads input
#     input_y + y stride + i dilation_y,   input_x + x stride + j dilation_x
# and has its weights, [c, o] with `pitch` outputs per channel, at  weight + (i kernel_x + j) C pitch.
TILE_FIELDS = (
    "first",
    "top",  # of the region, in the output
    "left",
    "height",
    "width",
    "taps_y",
    "taps_x",
    "input_y",
    "input_x",
    "dilation_y",
    "dilation_x",
    "weight",
    "kernel_x",
    "pitch",
    "output",  # first output of the block, of the branch's
    "channel",  # the same of the whole result's
)
# A part of one tap's sum over pixels: first to stop - 1 of the region that reads the input through the tap.
PART_FIELDS = ("first", "stop", "top", "left", "height", "width", "input_y", "input_x", "tap", "part")


@kept(maxsize=128)
def tile_table(batch, channels, branches, block, device):
    """(tiles, 16) int32 on a device, in the order of TILE_FIELDS, for branches ((rows, columns, outputs), ...), the
    first two as in atrous_conv2d_plan.py; `block` outputs per tile. A CUDA graph can only be captured after a
    first call.

    The blocks of the same pixels follow one another, as they read the same input.
    """
    found, weight, channel = [], 0, 0
    for rows, columns, outputs in branches:
        for y, x in regions(batch, rows, columns):
            first = torch.arange(tiles(batch, y, x), dtype=torch.int32) * TILE
            output = torch.arange(0, outputs, block, dtype=torch.int32)
            fixed = {
                "top": y.start,
                "left": x.start,
                "height": y.length,
                "width": x.length,
                "taps_y": y.taps,
                "taps_x": x.taps,
                "input_y": input_of(rows, y.start, y.first_tap),
                "input_x": input_of(columns, x.start, x.first_tap),
                "dilation_y": rows.dilation,
                "dilation_x": columns.dilation,
                "weight": weight + (y.first_tap * columns.kernel + x.first_tap) * channels * outputs,
                "kernel_x": columns.kernel,
                "pitch": outputs,
            }
            table = torch.empty(len(first), len(output), len(TILE_FIELDS), dtype=torch.int32)
            varying = {"first": first[:, None], "output": output, "channel": output + channel}
            for field, value in (fixed | varying).items():
                table[:, :, TILE_FIELDS.index(field)] = value
            found.append((y.taps * x.taps, table.flatten(0, 1)))
        weight += rows.kernel * columns.kernel * channels * outputs
        channel += outputs
    found.sort(key=lambda region: -region[0])
    return torch.cat([table for _, table in found] or [torch.empty(0, len(TILE_FIELDS), dtype=torch.int32)]).to(device)


@kept(maxsize=128)
def part_table(batch, rows, columns, parts, depth, device):
    """(taps parts, 10) int32 on a device, in the order of PART_FIELDS: each tap's pixels, in so many parts.

    Parts begin at multiples of `depth` pixels. A tap that reads padding only has empty parts: its gradient is 0.
    """
    items = []
    for ky in range(rows.kernel):
        top, bottom = outputs_of(rows, ky)
        for kx in range(columns.kernel):
            left, right = outputs_of(columns, kx)
            pixels = batch * (bottom - top) * (right - left)
            each = -(-pixels // (parts * depth)) * depth
            for part in range(parts):
                first, stop = min(part * each, pixels), min((part + 1) * each, pixels)
                at = input_of(rows, top, ky), input_of(columns, left, kx)
                sides = max(bottom - top, 1), max(right - left, 1)  # what kernels divide by
                items.append((first, stop, top, left, *sides, *at, ky * columns.kernel + kx, part))
    items.sort(key=lambda item: item[0] - item[1])
    return torch.tensor(items, dtype=torch.int32).view(-1, len(PART_FIELDS)).to(device)


def packed(weights):
    """Weights (O, C, ky, kx) of all branches as the kernels read them: 1-D."""
    return torch.cat([weight.permute(2, 3, 1, 0).reshape(-1) for weight in weights])


def forward(
    kernel, block, input, weight, scale, bias, residual, stride, padding, dilation, groups, relu, channels_last
):
    """Op atrous_conv2d by a kernel that reads a tile table; without groups."""
    sides = axes(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return convolved(kernel, block, input, [weight], [sides], scale, bias, residual, stride, relu, channels_last)


def backward_input(kernel, block, grad, weight, stride, padding, dilation, groups, size, channels_last):
    """Op atrous_conv2d_backward_input by the same kernel; for stride 1."""
    of_grad, padding = turned(size, weight.shape[2:], padding, dilation)
    sides = axes(of_grad, weight.shape[2:], stride, padding, dilation)
    weight = weight.flip(2, 3).transpose(0, 1)
    return convolved(kernel, block, grad, [weight], [sides], None, None, None, stride, False, channels_last)


def backward_weight(kernel, block, depth, grad, input, stride, padding, dilation, groups, kernel_size, channels_last):
    """Op atrous_conv2d_backward_weight by a kernel that reads a part table; without groups."""
    sides = axes(input.shape[2:], kernel_size, stride, padding, dilation)
    return weight_gradient(kernel, block, depth, grad, input, sides, stride, channels_last)


def pyramid(kernel, block, input, weights, scale, bias, dilations, relu, channels_last):
    """Op atrous_pyramid by the kernel of `forward`, in one launch."""
    sides = branches(input.shape[2:], weights, dilations)
    return convolved(kernel, block, input, weights, sides, scale, bias, None, (1, 1), relu, channels_last)


def convolved(kernel, block, input, weights, sides, scale, bias, residual, stride, relu, channels_last):
    """The convolution of an input (N, C, H, W), or several, by a kernel that reads a tile table.

    kernel(input, packed weights, scale, bias, residual, table, stride, (O, H', W'), relu) has input, residual and
    result in channels_last. sides: (rows, columns) per branch. `block` may be a function of all outputs.
    """
    input = input.contiguous(memory_format=torch.channels_last)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
    of_branches = tuple((*side, weight.shape[0]) for side, weight in zip(sides, weights, strict=True))
    rows, columns = sides[0]
    size = sum(weight.shape[0] for weight in weights), rows.outputs, columns.outputs
    table = tile_table(*input.shape[:2], of_branches, block(size[0]) if callable(block) else block, input.device)
    return in_format(kernel(input, packed(weights), scale, bias, residual, table, stride, size, relu), channels_last)


def weight_gradient(kernel, block, depth, grad, input, sides, stride, channels_last):
    """The weight's gradient (O, C, ky, kx) by a kernel that reads a part table.

    kernel(grad, input, table, stride, taps, parts) -> (taps, C, O) has its factors in channels_last. `block` channels
    by `block` outputs are one of its programs, `depth` pixels one of its steps.
    """
    grad, input = (x.contiguous(memory_format=torch.channels_last) for x in (grad, input))
    rows, columns = sides
    taps, (outputs, channels) = rows.kernel * columns.kernel, (grad.shape[1], input.shape[1])
    pixels = grad.shape[0] * rows.outputs * columns.outputs
    count = parts(taps * -(-channels // block) * -(-outputs // block), pixels, depth)
    table = part_table(grad.shape[0], rows, columns, count, depth, grad.device)
    gradient = kernel(grad, input, table, stride, taps, count).view(rows.kernel, columns.kernel, channels, outputs)
    return in_format(gradient.permute(3, 2, 0, 1), channels_last)


def parts(programs, pixels, depth):
    """How many parts a tap's sum is cut into, where so many programs would share the work if it were whole.

    Taps differ in length by up to 5, so four programs for each place in an H200 (two for each of its 132
    multiprocessors) are wanted to even that out; parts of less than 8 steps would cost more than they even out.
    """
    return max(min(-(-4 * 264 // programs), pixels // (8 * depth)), 1)
