"""What networks expect of their images, which depends on where their weights come from."""

from typing import NamedTuple

import torch


class Preprocess(NamedTuple):
    """RGB images (N, 3, H, W), uint8 or floating point in 0..1, -> ((images * scale) - mean) / std, a network's input.

    bgr  whether that has its channels in reverse, in which order mean and std are
    """

    mean: tuple
    std: tuple = (1.0, 1.0, 1.0)
    scale: float = 1.0
    bgr: bool = False

    def __call__(self, images):
        scale = self.scale if images.is_floating_point() else self.scale / 255
        images = images.to(torch.promote_types(images.dtype, torch.float32)) * scale
        if self.bgr:
            images = images.flip(-3)
        mean, std = (torch.tensor(value, dtype=images.dtype, device=images.device) for value in (self.mean, self.std))
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Preprocess((104.00699, 116.66877, 122.67892), scale=255.0, bgr=True)
SIGNED = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # -1..1: torchvision's GoogLeNet makes this of IMAGENET's
