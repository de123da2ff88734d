"""Networks. Each factory takes keywords and returns a `Segmenter`; state dicts are torchvision's."""

from fastseg.models.deeplabv3 import deeplabv3_resnet50, deeplabv3_resnet101
from fastseg.models.fcn import fcn_resnet50, fcn_resnet101
from fastseg.models.segmenter import Segmenter

_FACTORIES = {
    factory.__name__: factory for factory in (fcn_resnet50, fcn_resnet101, deeplabv3_resnet50, deeplabv3_resnet101)
}


def list_models():
    """The names that `get_model` knows."""
    return list(_FACTORIES)


def get_model(name, **keywords):
    """The network of that name: `get_model("fcn_resnet50", num_classes=19)`. Raises ValueError if unknown."""
    if name not in _FACTORIES:
        raise ValueError(f"get_model: name must be one of {', '.join(_FACTORIES)}, got {name!r}")
    return _FACTORIES[name](**keywords)


__all__ = [
    "Segmenter",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "get_model",
    "list_models",
]
