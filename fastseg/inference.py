"""Labels of whole images, or of overlapping windows in them, averaged over flips and scales, by any network.

With f the model, s the softmax over classes or nothing, and A the scales:
    scores = 1 / |A|  sum_{a in A}  resize( over_windows( score, resize(image, a) ), size of the image )
    score(x) = s(f(x))    or, with flip,    1 / 2 (s(f(x)) + flipped(s(f(flipped(x)))))
    labels = argmax over classes of scores
over_windows is at each pixel the mean of the scores of all windows that hold it. Resizing is bilinear interpolation
without antialiasing, align_corners=False.

A model is a module in eval mode or a function: (N, C, h, w) -> logits (N, classes, h, w), or a dict of them, of which
"out" counts. Scores are float32, or float64 if the logits are. Images in channels_last go through in channels_last, in
which convolutions are faster.
"""

import functools
import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from fastseg.ops import upsample_bilinear

AVERAGES = ("softmax", "logits")


@torch.no_grad()
def whole(model, images, *, flip=False, scales=(1,), average="softmax", probabilities=False):
    """Labels (N, H, W) of images (N, C, H, W), floating-point, that go through the model as they are.

    flip           average with what the mirrored image gets
    scales         factors of the image's size, to average over
    average        what is averaged: "softmax", that is probabilities, or "logits"
    probabilities  return them, (N, classes, H, W), in place of labels; of "logits" it is the softmax of their mean

    Labels are uint8 up to 256 classes, else int32. Without flip and scales a network's own `predict` gives the same
    labels and needs less memory. Raises TypeError or ValueError for wrong arguments, RuntimeError for a model in
    training mode.
    """
    score = _scoring("whole", model, images, flip, scales, average)
    return _result(_over_scales(score, images, scales), average, probabilities)


@torch.no_grad()
def sliding(
    model,
    images,
    crop=473,
    stride=2 / 3,
    *,
    batch=1,
    flip=False,
    scales=(1,),
    average="softmax",
    probabilities=False,
    progress=None,
):
    """Labels (N, H, W) of images (N, C, H, W), floating-point, that go through the model in overlapping windows.

    crop      height and width of a window, or one int for both
    stride    from one window to the next, as a share of crop, rounded up to pixels; the last ends with the image
    batch     windows per call of the model
    progress  progress(done, total), numbers of windows, is called after each of these calls
    flip, scales, average, probabilities, result and errors as in `whole`; it is windows that are flipped

    An image smaller than a window is padded on all sides with 0, the mean of normalised images. Images come one by one
    and a window's scores are added to its image's at once: held are those of one image and `batch` windows, however
    many there are.

    As PSPNet was evaluated (arXiv 1612.01105): flip=True, crop 473 (713 for Cityscapes), scales 0.5, 0.75, 1, 1.25, 1.5
    and 1.75, where 1 stands for a longer side of 512 (2048): times 512 / max(H, W), to give this function's.
    """
    score = _scoring("sliding", model, images, flip, scales, average)
    crop, steps = _windows(crop, stride)
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"sliding: batch must be an int from 1 on, got {batch!r}")
    if progress is not None:
        grids = [_scaled(images, scale) for scale in scales]
        total = len(images) * sum(math.prod(map(len, _starts(size, crop, steps))) for size in grids)
        score = _reporting(score, progress, total)
    score = functools.partial(_over_windows, score, crop=crop, steps=steps, batch=batch)
    # split(1) of no images is one piece of none, which still goes through the model: it says how many classes.
    return torch.cat([_result(_over_scales(score, one, scales), average, probabilities) for one in images.split(1)])


def _scoring(name, model, images, flip, scales, average):
    """The function score(x) of this module's formula, after the checks that both ways have in common."""
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"{name}: images must be a floating-point tensor, got {got}")
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name}: images must be (N, C, H, W) with C, H, W >= 1, got {tuple(images.shape)}")
    if not isinstance(scales, (tuple, list)) or not scales or not all(map(_is_positive, scales)):
        raise ValueError(f"{name}: scales must be numbers over 0, at least one, got {scales!r}")
    if average not in AVERAGES:
        raise ValueError(f"{name}: average must be one of {', '.join(AVERAGES)}, got {average!r}")
    if not callable(model):
        raise TypeError(f"{name}: model must be a module or a function, got {type(model).__name__}")
    if getattr(model, "training", False):
        raise RuntimeError(f"{name}: the model is in training mode; call model.eval() first")

    def one_way(x):
        logits = _logits(name, model, x)
        return logits.softmax(1) if average == "softmax" else logits

    def both_ways(x):
        return (one_way(x) + one_way(x.flip(3)).flip(3)) / 2

    return both_ways if flip else one_way


def _logits(name, model, x):
    logits = model(x)
    logits = logits["out"] if isinstance(logits, Mapping) else logits
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else ()
    if len(shape) != 4 or (shape[0], *shape[2:]) != (x.shape[0], *x.shape[2:]):
        wanted = f"logits ({x.shape[0]}, classes, {x.shape[2]}, {x.shape[3]}) of images {tuple(x.shape)}"
        raise ValueError(f"{name}: model must return {wanted}, got {shape or type(logits).__name__}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _is_positive(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf


def _windows(crop, stride):
    """(height, width) of a window, and from one to the next."""
    sides = tuple(crop) if isinstance(crop, (tuple, list)) else (crop, crop)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"sliding: crop must be an int or two, (height, width), from 1 on, got {crop!r}")
    if not _is_positive(stride) or stride > 1:
        raise ValueError(f"sliding: stride must be a number over 0 and up to 1, a share of crop, got {stride!r}")
    return sides, tuple(max(math.ceil(round(side * stride, 6)), 1) for side in sides)  # 100 * 0.07 is not quite 7


def _scaled(images, scale):
    return tuple(max(round(scale * side), 1) for side in images.shape[-2:])


def _starts(size, crop, steps):
    """First rows, and first columns, of the windows in an image of that size, once it is padded."""
    lasts = [max(side - window, 0) for side, window in zip(size, crop, strict=True)]
    return [
        [min(k * step, last) for k in range(math.ceil(last / step) + 1)]
        for last, step in zip(lasts, steps, strict=True)
    ]


def _reporting(score, progress, total):
    done = 0

    def reporting(windows):
        nonlocal done
        scores = score(windows)
        done += len(windows)
        progress(done, total)
        return scores

    return reporting


def _resized(x, size):
    return x if tuple(x.shape[-2:]) == tuple(size) else upsample_bilinear(x, size)


def _over_scales(score, images, scales):
    """The mean of scores (N, classes, H, W) over images at several scales."""
    total = 0
    for scale in scales:
        # From 0 on, so that the sum is no tensor of the model's.
        total += _resized(score(_resized(images, _scaled(images, scale))), images.shape[-2:])
    total /= len(scales)
    return total


def _over_windows(score, images, crop, steps, batch):
    """The mean of scores (N, classes, H, W) over windows, `batch` of each image at once."""
    (height, width), size = crop, images.shape[-2:]
    missing = [max(window - side, 0) for window, side in zip(crop, size, strict=True)]
    top, left = (m // 2 for m in missing)
    if any(missing):
        images = F.pad(images, (left, missing[1] - left, top, missing[0] - top))
    corners = list(itertools.product(*_starts(size, crop, steps)))
    total = None
    for first in range(0, len(corners), batch):
        places = [(..., slice(y, y + height), slice(x, x + width)) for y, x in corners[first : first + batch]]
        scores = score(torch.cat([images[place] for place in places]))
        if total is None:
            total = scores.new_zeros(len(images), scores.shape[1], *images.shape[-2:])
            count = total.new_zeros(images.shape[-2:])
        for place, one in zip(places, scores.unflatten(0, (len(places), len(images))), strict=True):
            total[place] += one
            count[place] += 1
        del scores, one  # before the next ones are made
    total /= count
    return total[..., top : top + size[0], left : left + size[1]]


def _result(scores, average, probabilities):
    if not probabilities:
        return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)
    return scores.softmax(1) if average == "logits" else scores
