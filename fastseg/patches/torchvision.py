"""torchvision's ASPP, FCN and DeepLabV3, and those of other libraries written after them."""

from collections import OrderedDict

import torch
from torch import Tensor

from fastseg.models.segmenter import upsampled
from fastseg.nn.joined import joined, why_not_joining
from fastseg.patches.layers import SEQUENTIAL, aspp_maps, first_reason, why_not_bypass, why_not_pooling
from fastseg.patches.registry import Patch, TensorPatch, low_logits, register

TORCHVISION = "torchvision.models.segmentation"
LIBRARIES = (  # module with ASPP, ASPPConv and ASPPPooling
    f"{TORCHVISION}.deeplabv3",
    "segmentation_models_pytorch.decoders.deeplabv3.decoder",
    "network._deeplab",  # VainF/DeepLabV3Plus-Pytorch
)
BRANCHES = (SEQUENTIAL, *(f"{library}.ASPPConv" for library in LIBRARIES))
POOLINGS = tuple(f"{library}.ASPPPooling" for library in LIBRARIES)


@register(*(f"{library}.ASPP" for library in LIBRARIES))
class ASPP(TensorPatch):
    """`convs`: branches, the last of which is the image's mean, spread over it; `project`: the convolution of all. The
    mean is neither spread nor concatenated, and the others are one operation while labelling."""

    ops = ("atrous_pyramid", "pyramid_conv2d")
    reads = frozenset({"convs", "torch", "cat", "project"})
    may_read = frozenset({"append"})

    @staticmethod
    def why_not(module):
        *_, pool = module.convs
        return first_reason(
            (
                why_not_bypass("the image pooling", pool, *POOLINGS),
                why_not_pooling("the image pooling's pool", pool[0]),
                None if pool[0].output_size in (1, (1, 1)) else "the image pooling is not to 1 x 1",
                why_not_bypass("project", module.project, SEQUENTIAL),
                why_not_joining("project.0", module.project[0]),
            )
        )

    def fused(self, x):
        *branches, pool = self.convs
        rows = [tuple(b) if len(b) == 3 and why_not_bypass("", b, *BRANCHES) is None else None for b in branches]
        mean = x
        for layer in pool:
            mean = layer(mean)
        conv, *layers = self.project
        return joined(aspp_maps(x, branches, rows), [mean], conv, layers, align_corners=False)


MODELS = (f"{TORCHVISION}.fcn.FCN", f"{TORCHVISION}.deeplabv3.DeepLabV3")


@low_logits(*MODELS)
def logits(model, x, aux):
    features = model.backbone(x)
    result = OrderedDict(out=model.classifier(features["out"]))
    if aux and model.aux_classifier is not None:
        result["aux"] = model.aux_classifier(features["aux"])
    return result, False


@register(*MODELS)
class SegmentationModel(Patch):
    """Logits are interpolated by us."""

    ops = ("upsample_bilinear",)
    reads = frozenset({"shape", "backbone", "OrderedDict", "classifier", "F", "interpolate", "aux_classifier"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not torch.jit.is_scripting():
            return self.fastseg_call(x)
        return self.fastseg_stock(x)

    def fused(self, x):
        result, align_corners = logits(self, x, aux=True)
        for name, low in result.items():
            result[name] = upsampled(low, x.shape[-2:], align_corners)
        return result
