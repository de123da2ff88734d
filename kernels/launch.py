"""How a kernel is launched."""

import torch


def launch(like, kernel, grid, arguments, constants):
    """On the GPU of tensor `like`, if there is anything to do."""
    if grid[0] > 0:
        with torch.cuda.device_of(like):
            kernel[grid](*arguments, **constants)
