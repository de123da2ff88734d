"""The pooled maps of VGG-16 without the work that an FCN's padding makes (arXiv 1605.06211, 4.1 and 5).

The first convolution pads an image by 100 pixels of zeros, so far from the image all maps are the same whatever it
shows: one value per channel, and along their borders what the other convolutions' zero padding makes of it. Both are
taken from the maps of a small blank. Each stage, 3x3 convolutions that pad by 1 and a 2x2 pooling, is computed where
the image reaches, and set into the blank's map. For a 500 x 500 image, which makes maps of 698 x 698 pixels, the four
stages take 185 GFLOP for 273.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.nn.watched import is_plain

# Of the first layer. It lets the deconvolutions reach an image of any size, and for four stages keeps the image's part
# of a map apart from its borders.
PADDING = 100
BLANK = 112  # least side of the blank: 7 or 8 pixels after four stages, of which borders reach 3 and 3 or 4


class Span(NamedTuple):
    """The rows, or columns, begin <= i < end of a map that has `size` of them."""

    begin: int
    end: int
    size: int

    def wider(self, by):
        return Span(self.begin - by, self.end + by, self.size)

    def pooled(self):
        return Span(self.begin // 2, -(-self.end // 2), -(-self.size // 2))

    def unpooled(self, size):
        return Span(2 * self.begin, 2 * self.end, size)


def may_leave_out_the_frame(layers):
    """Whether framed_maps computes what these layers do, up to a pooling, and nothing is to see their calls."""
    if not all(is_plain(layer, (nn.Conv2d, nn.ReLU, nn.MaxPool2d)) for layer in layers):
        return False
    if not layers or not isinstance(layers[-1], nn.MaxPool2d):
        return False
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    paddings = [(PADDING, PADDING)] + [(1, 1)] * (len(convolutions) - 1)
    return all(
        (conv.kernel_size, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and (conv.padding, conv.padding_mode) == (padding, "zeros")
        for conv, padding in zip(convolutions, paddings, strict=True)
    ) and all(
        (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (2, 2, 0, 1, True)
        for pool in layers
        if isinstance(pool, nn.MaxPool2d)
    )


def framed_maps(layers, images, kept):
    """{name: map, in channels_last} of the poolings named in `kept`. layers: {name: layer} of up to four stages; images
    (N, 3, H, W)."""
    frame = PADDING - 1  # so that the first convolution pads by 1, as the others do
    reached = [Span(frame, frame + n, n + 2 * frame) for n in images.shape[-2:]]
    sides = [BLANK + (span.size - BLANK) % 16 for span in reached]  # halved four times, it ends as the image does
    blank, part, maps = images.new_zeros(1, images.shape[1], *sides), images, {}
    for name, convolutions, pool in _stages(layers):
        depth = sum(isinstance(layer, nn.Conv2d) for layer in convolutions)
        before, reached = reached, [span.wider(depth).pooled() for span in reached]
        read = [span.unpooled(old.size).wider(depth) for span, old in zip(reached, before, strict=True)]
        part = pool(_convolved(convolutions, _framed(part, before, blank, read), padding=0))
        blank = pool(_convolved(convolutions, blank, padding=1))
        if name in kept:
            maps[name] = _framed(part, reached, blank, [Span(0, span.size, span.size) for span in reached])
    return maps


def _stages(layers):
    """(name of the pooling, layers before it, pooling)"""
    convolutions = []
    for name, layer in layers.items():
        if isinstance(layer, nn.MaxPool2d):
            yield name, convolutions, layer
            convolutions = []
        else:
            convolutions.append(layer)


def _convolved(layers, x, padding):
    for layer in layers:
        x = F.conv2d(x, layer.weight, layer.bias, padding=padding) if isinstance(layer, nn.Conv2d) else layer(x)
    return x


def _framed(part, reached, blank, shown):
    """The map on the spans `shown`: `part`, which is the map on the spans `reached`, and around it the blank's."""
    rows, columns = (_places(span, n, blank.device) for span, n in zip(shown, blank.shape[-2:], strict=True))
    whole = blank.permute(0, 2, 3, 1)[:, rows[:, None], columns].permute(0, 3, 1, 2)
    whole = whole.expand(len(part), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    top, left = (inner.begin - outer.begin for inner, outer in zip(reached, shown, strict=True))
    whole[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
    return whole


def _places(span, n, device):
    """Where in n rows of a blank those of a span are, with the middle one as often as needed."""
    row = torch.arange(span.begin, span.end, device=device)
    return row.clamp(max=(n - 1) // 2).maximum(row - (span.size - n))
