"""PSPNet of its authors' PyTorch code, hszhao/semseg."""

from collections import OrderedDict

import torch
from torch import nn

from fastseg.models.segmenter import upsampled
from fastseg.nn.joined import joined, why_not_joining
from fastseg.nn.watched import is_plain
from fastseg.ops import upsample_argmax, upsample_cross_entropy
from fastseg.patches.layers import SEQUENTIAL, first_reason, pyramid_priors, why_not_bypass, why_not_pooling
from fastseg.patches.registry import low_logits, register

LIBRARY = "model.pspnet"
READS = (
    "size int layer0 layer1 layer2 layer3 layer4 use_ppm ppm cls zoom_factor F interpolate training aux criterion max"
)


def _heads(model, x, aux):
    """(logits, those of the auxiliary head or None), (N, C, h, w)."""
    features = model.layer3(model.layer2(model.layer1(model.layer0(x))))
    x = model.layer4(features)
    if not model.use_ppm or _why_not_pyramid(model) is not None:
        low = model.cls(model.ppm(x) if model.use_ppm else x)
    else:
        conv, *layers = model.cls
        low = joined(x, pyramid_priors(x, model.ppm.features), conv, layers, align_corners=True)
    return low, model.aux(features) if aux else None


def _why_not_pyramid(model):
    return first_reason(_reasons(model))


def _reasons(model):
    yield why_not_bypass("ppm", model.ppm, f"{LIBRARY}.PPM")
    for i, branch in enumerate(model.ppm.features):
        yield why_not_bypass(f"ppm.features.{i}", branch, SEQUENTIAL)
        yield why_not_pooling(f"ppm.features.{i}.0", branch[0])
    yield why_not_bypass("cls", model.cls, SEQUENTIAL)
    yield why_not_joining("cls.0", model.cls[0])


@low_logits(f"{LIBRARY}.PSPNet")
def logits(model, x, aux):
    if model.zoom_factor != 8:
        return None
    low, of_aux = _heads(model, x, aux and hasattr(model, "aux"))
    return OrderedDict(out=low) if of_aux is None else OrderedDict(out=low, aux=of_aux), True


@register(f"{LIBRARY}.PSPNet")
class PSPNet:
    """The pyramid is not concatenated, and in training neither upsampled are the logits."""

    ops = ("pyramid_pool", "pyramid_conv2d", "upsample_bilinear", "upsample_argmax", "upsample_cross_entropy")
    reads = frozenset(READS.split())

    @staticmethod
    def why_not(module):
        return _why_not_pyramid(module) if module.use_ppm else None

    def fused(self, x, y=None):
        assert x.shape[2] % 8 == x.shape[3] % 8 == 1, f"PSPNet: sides of images must be 8 n + 1, got {tuple(x.shape)}"
        low, of_aux = _heads(self, x, self.training)
        size = [(side - 1) // 8 * self.zoom_factor + 1 for side in x.shape[2:]]
        if self.training and is_plain(self.criterion, (nn.CrossEntropyLoss,)) and y.shape[1:] == (*size,):
            c = self.criterion
            how = c.weight, c.ignore_index, c.reduction, c.label_smoothing, True
            losses = [upsample_cross_entropy(each, y, *how) for each in (low, of_aux)]
            return upsample_argmax(low, size, True, torch.int64), *losses
        out = upsampled(low, size, True)
        if not self.training:
            return out
        return out.max(1)[1], self.criterion(out, y), self.criterion(upsampled(of_aux, size, True), y)
