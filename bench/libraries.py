"""Networks of other libraries as they are commonly used, random weights, always the same: images -> their logits."""

import importlib.util
import sys
import types

import torch

from fastseg.bench.vision import torchvision_segmentation

CLASSES = 19  # of Cityscapes
PIP = {"segmentation_models_pytorch": "segmentation-models-pytorch", "mmseg": "mmsegmentation mmcv ftfy"}


class Logits(torch.nn.Module):
    """A network that returns one tensor, whatever the library's own wraps it in."""

    def __init__(self, network, of):
        super().__init__()
        self.network, self.of = network, of

    def forward(self, x):
        return self.of(self.network(x))


def absent(library):
    """Why there is no network of a library, or None."""
    if importlib.util.find_spec(library):
        return None
    return f"{library} is not installed: pip install {PIP.get(library, library)}"


def torchvision(name):
    build = getattr(torchvision_segmentation(), name)
    network = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)
    return Logits(network, lambda outputs: outputs["out"])


def smp(name, **keywords):
    torchvision_segmentation()  # which it imports
    import segmentation_models_pytorch

    network = getattr(segmentation_models_pytorch, name)
    return network("resnet50", encoder_weights=None, classes=CLASSES, **keywords)


def mmseg(head, **keywords):
    """At output stride 8, as published. mmseg imports compiled operations of mmcv that none of its heads here calls;
    where mmcv has none they are stood in for."""
    if "mmcv._ext" not in sys.modules and not importlib.util.find_spec("mmcv._ext"):
        extension = sys.modules["mmcv._ext"] = types.ModuleType("mmcv._ext")
        extension.__getattr__ = lambda name: lambda *arguments, **keywords: None
        extension.__file__ = "mmcv/_ext.so"
    torchvision_segmentation()  # which it imports
    norm = {"type": "BN", "requires_grad": True}
    backbone = {"type": "ResNetV1c", "depth": 50, "dilations": (1, 1, 2, 4), "strides": (1, 2, 1, 1)}
    decoder = {"type": head, "in_channels": 2048, "in_index": 3, "channels": 512, "num_classes": CLASSES}
    from mmseg.models import EncoderDecoder

    return EncoderDecoder(
        backbone={**backbone, "norm_cfg": norm, "contract_dilation": True, "style": "pytorch"},
        decode_head={**decoder, "norm_cfg": norm, "align_corners": False, **keywords},
    )


def upernet():
    torchvision_segmentation()  # which it imports
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    network = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=CLASSES))
    return Logits(network, lambda outputs: outputs.logits)
