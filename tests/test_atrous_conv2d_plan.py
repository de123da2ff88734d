"""Which work atrous_conv2d's kernels skip: by brute force, no valid tap of any output."""

import itertools

import pytest
import torch
from convolutions import convolutions
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from fastseg.ops.atrous_conv2d_boxes import common_box
from fastseg.ops.atrous_conv2d_plan import (
    TILE,
    axis,
    executed_work,
    input_of,
    merged,
    outputs_of,
    regions,
    spans,
    tiles,
)
from fastseg.ops.atrous_conv2d_tiles import PART_FIELDS, TILE_FIELDS, part_table, tile_table


def valid(axis, output, tap):
    return 0 <= input_of(axis, output, tap) < axis.length


@settings(max_examples=150, deadline=None, derandomize=True)
@drawn(how=convolutions(), boxed=st.booleans())
def test_no_valid_tap_is_skipped(how, boxed):
    """Every output is in one region, whose taps are all those that an output of it reads the input through, and on the
    longest spans no others."""
    batch, *sides = how
    rows, columns = (axis(*side) for side in zip(*sides, strict=True))
    box = common_box(batch, ((rows, columns),)) if boxed else None
    seen = torch.zeros(rows.outputs, columns.outputs, dtype=torch.int64)
    for y, x in regions(batch, rows, columns, box):
        seen[y.start : y.stop, x.start : x.stop] += 1
        for side, span in ((rows, y), (columns, x)):
            wanted = [any(valid(side, o, tap) for o in range(span.start, span.stop)) for tap in range(side.kernel)]
            listed = [span.first_tap <= tap < span.first_tap + span.taps for tap in range(side.kernel)]
            if y.taps * x.taps:
                assert all(has for has, is_valid in zip(listed, wanted, strict=True) if is_valid)
    assert (seen == 1).all()
    for side in (rows, columns):
        for span in spans(side):
            for o, tap in itertools.product(range(span.start, span.stop), range(side.kernel)):
                assert valid(side, o, tap) == (span.first_tap <= tap < span.first_tap + span.taps)
        for tap in range(side.kernel):
            first, stop = outputs_of(side, tap)
            assert [o for o in range(side.outputs) if valid(side, o, tap)] == list(range(first, stop))


@settings(max_examples=40, deadline=None, derandomize=True)
@drawn(how=convolutions(), outputs=st.integers(1, 70))
def test_tiles_cover_the_output_once(how, outputs):
    """Pixel by pixel and output by output, with every valid tap; as the kernels decode them."""
    batch, size, kernel, stride, padding, dilation = how
    rows, columns = (axis(*side) for side in zip(size, kernel, stride, padding, dilation, strict=True))
    table, channels, block = [], 3, 32
    seen = torch.zeros(batch, rows.outputs, columns.outputs, outputs, dtype=torch.int64)
    taps = torch.zeros(batch, rows.outputs, columns.outputs, dtype=torch.int64)
    for row in tile_table(batch, channels, ((rows, columns, outputs),), block, "cpu").tolist():
        tile = dict(zip(TILE_FIELDS, row, strict=True))
        height, width = tile["height"], tile["width"]
        number = tile["first"] + torch.arange(TILE)
        image, y, x = number // (height * width), number // width % height, number % width
        image, y, x = (part[image < batch] for part in (image, y, x))
        seen[image, tile["top"] + y, tile["left"] + x, tile["channel"] : tile["channel"] + block] += 1
        for i, j in itertools.product(range(tile["taps_y"]), range(tile["taps_x"])):
            row_in = tile["input_y"] + y * stride[0] + i * tile["dilation_y"]
            column_in = tile["input_x"] + x * stride[1] + j * tile["dilation_x"]
            inside = (row_in >= 0) & (row_in < size[0]) & (column_in >= 0) & (column_in < size[1])
            taps[image, tile["top"] + y, tile["left"] + x] += inside * (tile["output"] == 0)
        table.append(tile)
    assert (seen == 1).all()
    exact = torch.tensor([sum(valid(rows, o, tap) for tap in range(kernel[0])) for o in range(rows.outputs)])[:, None]
    exact = exact * torch.tensor(
        [sum(valid(columns, o, tap) for tap in range(kernel[1])) for o in range(columns.outputs)]
    )
    assert torch.equal(taps, exact.expand_as(taps))
    executed = TILE * sum(tile["taps_y"] * tile["taps_x"] for tile in table if tile["output"] == 0)
    dense = batch * rows.outputs * columns.outputs * kernel[0] * kernel[1]
    assert executed / dense == pytest.approx(executed_work(batch, rows, columns))
    heaviest = [tile["taps_y"] * tile["taps_x"] for tile in table]
    assert heaviest == sorted(heaviest, reverse=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@drawn(how=convolutions(), count=st.integers(1, 5))
def test_parts_cover_the_valid_pixels_of_each_tap_once(how, count):
    batch, *sides = how
    rows, columns = (axis(*side) for side in zip(*sides, strict=True))
    pixels = {}
    for row in part_table(batch, rows, columns, count, 32, "cpu").tolist():
        part = dict(zip(PART_FIELDS, row, strict=True))
        assert part["first"] % 32 == 0 or part["first"] == part["stop"]
        pixels.setdefault(part["tap"], []).extend(range(part["first"], part["stop"]))
        ky, kx = divmod(part["tap"], columns.kernel)
        if part["first"] < part["stop"]:
            assert part["input_y"] == input_of(rows, part["top"], ky)
            assert part["input_x"] == input_of(columns, part["left"], kx)
    for tap in range(rows.kernel * columns.kernel):
        ky, kx = divmod(tap, columns.kernel)
        (top, bottom), (left, right) = outputs_of(rows, ky), outputs_of(columns, kx)
        assert sorted(pixels[tap]) == list(range(batch * (bottom - top) * (right - left)))


def mean_work(batch, side, rates, boxed):
    work = []
    for rate in rates:
        sides = [axis(side, 3, 1, rate, rate)] * 2
        work.append(executed_work(batch, *sides, common_box(batch, (tuple(sides),)) if boxed else None))
    return sum(work) / len(work)


def test_how_much_work_deeplab_leaves():
    """Of the dense work of its three atrous branches; without whole tiles it would be 0.58 for both."""
    assert mean_work(8, 65, (12, 24, 36), False) <= 0.59
    assert mean_work(8, 33, (6, 12, 18), False) <= 0.62
    assert mean_work(8, 65, (12, 24, 36), True) <= 0.66
    assert mean_work(8, 33, (6, 12, 18), True) <= 0.72


def test_cuts_pay():
    """Neither a single region is cheaper, nor are the finest cuts."""
    for batch, side, rate in ((1, 33, 6), (1, 65, 12), (8, 33, 12), (2, 97, 36), (1, 7, 1)):
        sides = [axis(side, 3, 1, rate, rate)] * 2
        finest = [(y, x) for y in spans(sides[0]) for x in spans(sides[1])]
        whole = [tuple(merged(spans(each)) for each in sides)]
        chosen, *others = (
            sum(tiles(batch, y, x) * y.taps * x.taps for y, x in cut) for cut in (regions(batch, *sides), finest, whole)
        )
        assert chosen <= min(others)
