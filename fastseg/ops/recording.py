"""Graphs that leave this process: they get PyTorch's own ops, as they may run where there is no fastseg."""

import torch


def is_recording(x):
    """Whether torch.export, torch.jit.trace or torch.fx records what is done with x."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting() or not isinstance(x, torch.Tensor)
