"""Functional ops with the signatures of torch.nn.functional. One row per op."""

from fastseg.ops.upsample_argmax import upsample_argmax

__all__ = ["upsample_argmax"]
