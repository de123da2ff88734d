"""Bilinear upsampling, and the losses of logits that are not upsampled."""

import math

from torch import nn

from fastseg.ops import upsample_bilinear, upsample_cross_entropy


def _pair(x):
    return tuple(x) if isinstance(x, (tuple, list)) else (x, x)


class UpsampleBilinear(nn.Upsample):
    """nn.Upsample(mode="bilinear"): (N, C, h, w) -> (N, C, H, W), with a deterministic gradient.

    size           (H, W), or one int for both
    scale_factor   or instead the factors of h and w, or one number for both: H = floor(h * scale_factor)
    align_corners  as in F.interpolate; True is nn.UpsamplingBilinear2d
    recompute_scale_factor  as in F.interpolate

    Where h * scale_factor is not whole, nn.Upsample goes through the input in steps of 1 / scale_factor, which are not
    h / H: no size describes that. It is a ValueError, unless recompute_scale_factor=True asks for h / H, or
    align_corners=True, which looks at sizes alone.
    """

    def __init__(self, size=None, scale_factor=None, align_corners=False, recompute_scale_factor=None):
        if (size is None) == (scale_factor is None):
            raise ValueError(f"UpsampleBilinear: wanted either size or scale_factor, got {size=}, {scale_factor=}")
        if scale_factor is not None:
            factors = _pair(scale_factor)
            if len(factors) != 2 or not all(isinstance(f, (int, float)) and 0 < f < math.inf for f in factors):
                raise ValueError(
                    f"UpsampleBilinear: scale_factor must be a number over 0 or two, (of h, of w), got {scale_factor!r}"
                )
            scale_factor = factors if isinstance(scale_factor, (tuple, list)) else scale_factor
        super().__init__(size, scale_factor, "bilinear", align_corners, recompute_scale_factor)

    def forward(self, input):
        size = self.size
        if size is None:
            size = [self._scaled(side, f) for side, f in zip(input.shape[-2:], _pair(self.scale_factor), strict=True)]
        return upsample_bilinear(input, size, bool(self.align_corners))

    def _scaled(self, side, factor):
        if factor.is_integer():
            return side * int(factor)
        scaled = math.floor(side * factor)
        is_whole = side * factor - scaled < 1e-6 * scaled  # but for rounding
        if not (is_whole or self.align_corners or self.recompute_scale_factor):
            what = f"{side} * scale_factor {factor} is not whole"
            raise ValueError(f"UpsampleBilinear: {what}: give a size, or recompute_scale_factor=True")
        return scaled


class UpsampleCrossEntropyLoss(nn.CrossEntropyLoss):
    """nn.CrossEntropyLoss of logits (N, C, h, w), upsampled bilinearly to their target (N, H, W), without doing so.

    The target holds classes. Arguments, the buffer `weight` and the state dict are nn.CrossEntropyLoss's, and
    align_corners is F.interpolate's. The loss is float32.

    Online hard example mining keeps the pixels whose class has a probability below 0.7, or else the 1000 worst:

    >>> import math, torch
    >>> criterion = UpsampleCrossEntropyLoss(ignore_index=255, reduction="none")
    >>> logits = torch.randn(2, 21, 9, 9, requires_grad=True)
    >>> target = torch.randint(21, (2, 65, 65))
    >>> loss = criterion(logits, target)[target != 255]
    >>> kept = max(int((loss > -math.log(0.7)).sum()), 1000)
    >>> loss.topk(min(kept, loss.numel())).values.mean().backward()
    """

    def __init__(self, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, align_corners=False):
        super().__init__(weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.align_corners = align_corners

    def forward(self, input, target):
        return upsample_cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, self.align_corners
        )

    def extra_repr(self):
        names = ("ignore_index", "reduction", "label_smoothing", "align_corners")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class AuxiliaryLoss(nn.Module):
    """Deep supervision: criterion(outputs["out"], target) + aux_weight * criterion(outputs["aux"], target).

    outputs are what a network returns, `model(x, upsample=False)` if the criterion takes small logits; without "aux"
    there is the first term only. PSPNet found 0.4 best (arXiv 1612.01105, "Deep Supervision for ResNet-Based FCN"),
    torchvision trains with 0.5.
    """

    def __init__(self, criterion, aux_weight=0.4):
        super().__init__()
        self.criterion = criterion
        self.aux_weight = aux_weight

    def forward(self, outputs, target):
        loss = self.criterion(outputs["out"], target)
        if "aux" in outputs:
            loss = loss + self.aux_weight * self.criterion(outputs["aux"], target)
        return loss

    def extra_repr(self):
        return f"aux_weight={self.aux_weight}"
