"""Computes the pyramid of poolings, and its gradient  (fastseg/ops/pyramid_pool.py).

    pyramid_pool_forward.py, pyramid_pool_backward.py     the kernels
    pyramid_pool_segments.py                              how cells cut the map, and how programs share it

The input is read once, for all bins; its gradient is written once. Blocks are long where memory is dense: along the
channels of channels_last, else along the columns.
Precision: float32 in a fixed order, rounded once at the store.
"""

import torch

from fastseg.kernels.launch import launch
from fastseg.kernels.pyramid_pool_backward import backward_plan
from fastseg.kernels.pyramid_pool_forward import plan
from fastseg.ops.layout import memory_format
from fastseg.ops.pyramid_pool import pairs


def new_cells(like, bins, dtype, channels_last):
    """(N, C, S), with channels_last of a dense (N, S, C)."""
    n, c = like.shape[:2]
    cells = sum(h * w for h, w in pairs(bins))
    if channels_last:
        return torch.empty((n, cells, c), dtype=dtype, device=like.device).mT
    return torch.empty((n, c, cells), dtype=dtype, device=like.device)


def pyramid_pool(input, bins, max, channels_last):
    output = new_cells(input, bins, input.dtype, channels_last)
    indices = new_cells(input, bins, torch.int64, channels_last) if max else input.new_empty(0, dtype=torch.int64)
    for one in plan(input, output, indices, bins, max):
        launch(input, *one)
    return output, indices


def pyramid_pool_backward(grad, indices, bins, max, size, channels_last):
    shape, layout = (*grad.shape[:2], *size), memory_format(channels_last)
    grad_input = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    launch(grad, *backward_plan(grad, indices, grad_input, bins, max))
    return grad_input


def launches():
    """(what, *launch) of each kind of block, mode, dtype and layout, for the compile gates."""
    large, small = ((1, 2048, 60, 60), (1, 1, 2, 2, 3, 3, 6, 6)), ((2, 48, 7, 300), (1, 1, 9, 5))
    for channels_last, max, dtype, (shape, bins) in (
        (False, False, torch.float32, large),
        (True, False, torch.bfloat16, large),
        (True, True, torch.float32, large),
        (False, True, torch.float16, small),
    ):
        input = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format(channels_last))
        output, indices = (new_cells(input, bins, kind, channels_last) for kind in (dtype, torch.int64))
        layout, mode = "channels_last" if channels_last else "NCHW", "max" if max else "avg"
        what = f"{layout} {'x'.join(map(str, shape))} {mode} of {bins} {dtype}"
        for one in (*plan(input, output, indices, bins, max), backward_plan(output, indices, input, bins, max)):
            yield what, *one
