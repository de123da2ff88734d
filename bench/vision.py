"""Imports torchvision, also where its wheel does not fit torch."""

import importlib

import torch


def torchvision_segmentation():
    """torchvision.models.segmentation."""
    try:
        return importlib.import_module("torchvision.models.segmentation")
    except RuntimeError:
        if torch.version.cuda is not None:
            raise
    # PyPI's torchvision is built for CUDA. Next to a CPU-only torch its kernels do not load, and the import
    # fails because it describes two of them to torch that nobody has defined. The networks use neither.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    return importlib.import_module("torchvision.models.segmentation")
