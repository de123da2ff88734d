"""Networks. Each factory takes keywords and returns a module with `forward`, `predict` and `preprocess`.

DeepLabv3 and FCN on ResNets are `Segmenter`s with torchvision's state dicts, PSPNets have those of the authors' PyTorch
code; FCN-32s, 16s and 8s are `SkipFCN`s with the state dicts of the authors' Caffe networks.
"""

# ruff: noqa: F401  (factories are in __all__ by _FACTORIES)

from fastseg.models.deeplabv3 import DeepLabV3, deeplabv3_resnet50, deeplabv3_resnet101
from fastseg.models.factories import _FACTORIES, get_model, list_models
from fastseg.models.fcn import FCN, fcn_resnet50, fcn_resnet101
from fastseg.models.fcn_alexnet import fcn8s_alexnet, fcn16s_alexnet, fcn32s_alexnet
from fastseg.models.fcn_googlenet import fcn8s_googlenet, fcn16s_googlenet, fcn32s_googlenet
from fastseg.models.fcn_vgg16 import fcn8s_atonce_vgg16, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from fastseg.models.loading import load_checkpoint, to_torchvision_state_dict
from fastseg.models.pspnet import PSPNet, pspnet_resnet50, pspnet_resnet101, pspnet_resnet152, pspnet_resnet269
from fastseg.models.segmenter import Segmenter
from fastseg.models.skip_fcn import SkipFCN

__all__ = [
    "FCN",
    "DeepLabV3",
    "PSPNet",
    "Segmenter",
    "SkipFCN",
    "get_model",
    "list_models",
    "load_checkpoint",
    "to_torchvision_state_dict",
    *_FACTORIES,
]
