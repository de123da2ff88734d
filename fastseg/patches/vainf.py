"""DeepLabV3 of VainF/DeepLabV3Plus-Pytorch. Its ASPP is torchvision's (patches/torchvision.py)."""

from collections import OrderedDict

from fastseg.models.segmenter import upsampled
from fastseg.patches.registry import TensorPatch, low_logits, register

MODEL = "network._deeplab.DeepLabV3"  # DeepLabv3+ as well: the head differs


@low_logits(MODEL)
def logits(model, x, aux):
    return OrderedDict(out=model.classifier(model.backbone(x))), False


@register(MODEL)
class SegmentationModel(TensorPatch):
    """Logits are interpolated by us."""

    ops = ("upsample_bilinear",)
    reads = frozenset({"shape", "backbone", "classifier", "F", "interpolate"})

    def fused(self, x):
        result, align_corners = logits(self, x, aux=False)
        return upsampled(result["out"], x.shape[-2:], align_corners)
