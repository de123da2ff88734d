"""Networks by name."""

from fastseg.models.deeplabv3 import deeplabv3_resnet50, deeplabv3_resnet101
from fastseg.models.fcn import fcn_resnet50, fcn_resnet101
from fastseg.models.fcn_alexnet import fcn8s_alexnet, fcn16s_alexnet, fcn32s_alexnet
from fastseg.models.fcn_googlenet import fcn8s_googlenet, fcn16s_googlenet, fcn32s_googlenet
from fastseg.models.fcn_vgg16 import fcn8s_atonce_vgg16, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from fastseg.models.pspnet import pspnet_resnet50, pspnet_resnet101, pspnet_resnet152, pspnet_resnet269

_FACTORIES = {
    factory.__name__: factory
    for factory in (
        fcn_resnet50,
        fcn_resnet101,
        deeplabv3_resnet50,
        deeplabv3_resnet101,
        pspnet_resnet50,
        pspnet_resnet101,
        pspnet_resnet152,
        pspnet_resnet269,
        fcn32s_vgg16,
        fcn16s_vgg16,
        fcn8s_vgg16,
        fcn8s_atonce_vgg16,
        fcn32s_alexnet,
        fcn16s_alexnet,
        fcn8s_alexnet,
        fcn32s_googlenet,
        fcn16s_googlenet,
        fcn8s_googlenet,
    )
}


def list_models():
    """The names that `get_model` knows."""
    return list(_FACTORIES)


def get_model(name, **keywords):
    """The network of that name: `get_model("fcn_resnet50", num_classes=19)`. Raises ValueError if unknown."""
    if name not in _FACTORIES:
        raise ValueError(f"get_model: name must be one of {', '.join(_FACTORIES)}, got {name!r}")
    return _FACTORIES[name](**keywords)
