"""The precision that references compute in."""

import torch


def widened(x):
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
