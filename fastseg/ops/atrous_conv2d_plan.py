"""Which taps of a convolution read the image, and not its padding: by regions of the output, and the other way round.

Along one axis output o reads, through tap k, input  o stride - padding + k dilation.  Its valid taps are a range that
changes at few outputs only. So cuts at some of these turn the output into rectangles, *regions*, each with a rectangle
of taps outside of which its products are all padding. A *tile* is a run of `TILE` pixels of one region, image after
image and row after row, or, for copies that know no such runs, a *box* of TILE = images x rows x columns. What a tile
executes is whole: TILE pixels times its taps, also where some of its pixels lie beyond the region. Merging neighbouring
regions saves such pixels and adds taps; `regions` finds the cheapest cuts.

Everything here is a pure function of sizes.
"""

import functools
from typing import NamedTuple

TILE = 128  # pixels


class Axis(NamedTuple):
    """What a convolution does along one axis."""

    length: int  # of the input
    kernel: int
    stride: int
    padding: int  # may be negative, as in the gradient of a convolution with much padding
    dilation: int
    outputs: int


class Span(NamedTuple):
    """Outputs start to stop - 1 of an axis, and the range of taps any of them reads the input through."""

    start: int
    stop: int
    first_tap: int
    taps: int

    @property
    def length(self):
        return self.stop - self.start


def axis(length, kernel, stride, padding, dilation):
    outputs = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return Axis(length, kernel, stride, padding, dilation, outputs)


def axes(size, kernel, stride, padding, dilation):
    """What the convolution does along the rows and the columns of an input of that size."""
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple(axis(*side) for side in sides)


def turned(size, kernel, padding, dilation):
    """(size, padding) of the gradient as input of the convolution, of stride 1, that gives an input's of `size`.

    Its weight is the transpose of the other's, with the last tap first.
    """
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    of_grad = tuple(n + 2 * p - r for n, p, r in zip(size, padding, reach, strict=True))
    return of_grad, tuple(r - p for r, p in zip(reach, padding, strict=True))


def branches(size, weights, dilations):
    """(rows, columns) of each branch of atrous_pyramid on an input of that (H, W)."""
    shapes = [weight.shape[2:] for weight in weights]
    how = [
        ((1, 1), [rate * (k // 2) for k in shape], (rate, rate)) for shape, rate in zip(shapes, dilations, strict=True)
    ]
    return [axes(size, shape, *each) for shape, each in zip(shapes, how, strict=True)]


def input_of(axis, output, tap):
    """The input position under a tap."""
    return output * axis.stride - axis.padding + tap * axis.dilation


def outputs_of(axis, tap):
    """(first, stop): the outputs that read the input through a tap."""
    start = -(-(axis.padding - tap * axis.dilation) // axis.stride)
    stop = (axis.length - 1 + axis.padding - tap * axis.dilation) // axis.stride + 1
    start = min(max(start, 0), axis.outputs)
    return start, max(min(stop, axis.outputs), start)


def spans(axis):
    """The longest runs of outputs with the same valid taps, in order."""
    ranges = [outputs_of(axis, tap) for tap in range(axis.kernel)]
    cuts = sorted({0, axis.outputs, *(cut for of_tap in ranges for cut in of_tap)})
    found = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        valid = [tap for tap, (first, last) in enumerate(ranges) if first <= start < last]
        found.append(Span(start, stop, valid[0] if valid else 0, len(valid)))
    return found


def merged(run):
    """One span in place of several neighbours: the taps of all."""
    reading = [span for span in run if span.taps]
    first = min((span.first_tap for span in reading), default=0)
    last = max((span.first_tap + span.taps for span in reading), default=0)
    return Span(run[0].start, run[-1].stop, first, last - first)


def tiles(batch, rows, columns, box=None):
    """How many tiles a region has: runs, or boxes of (images, rows, columns)."""
    if box is None:
        return _ceil(batch * rows.length * columns.length, TILE)
    return _ceil(batch, box[0]) * _ceil(rows.length, box[1]) * _ceil(columns.length, box[2])


def _ceil(n, each):
    return -(-n // each)


def _cheapest(finest, across, count):
    """The best spans along one axis, given those across: a shortest path over the possible cuts.

    count(span, other): tiles of a region.
    """
    best = [(0, 0, ())]  # by cut: (tap-tiles, tiles, spans)
    for stop in range(1, len(finest) + 1):
        choices = []
        for start in range(stop):
            span = merged(finest[start:stop])
            counts = [count(span, other) for other in across]
            work = span.taps * sum(n * other.taps for n, other in zip(counts, across, strict=True))
            before = best[start]
            choices.append((before[0] + work, before[1] + sum(counts), (*before[2], span)))
        best.append(min(choices))
    return best[-1]


@functools.lru_cache(maxsize=1024)
def regions(batch, rows, columns, box=None):
    """((span of rows, span of columns), ...), those with most taps first, for two Axis.

    Cuts along one axis are the best for those along the other, in turns until nothing changes.
    """
    if 0 in (batch, rows.outputs, columns.outputs):
        return ()
    finest = spans(rows), spans(columns)
    down, cost = finest[0], None
    while True:
        _, _, right = _cheapest(finest[1], down, lambda x, y: tiles(batch, y, x, box))
        *found, down = _cheapest(finest[0], right, lambda y, x: tiles(batch, y, x, box))
        if found == cost:
            break
        cost = found
    return tuple(sorted(((y, x) for y in down for x in right), key=lambda region: -region[0].taps * region[1].taps))


def executed_work(batch, rows, columns, box=None):
    """Executed work over dense work: tap-pixels of all tiles, whole, over those of all outputs."""
    cut = regions(batch, rows, columns, box)
    done = TILE * sum(tiles(batch, y, x, box) * y.taps * x.taps for y, x in cut)
    return done / max(batch * rows.outputs * columns.outputs * rows.kernel * columns.kernel, 1)
