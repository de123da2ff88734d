"""Where in a network an operation runs: ranges for torch.profiler around modules' calls."""

import contextlib
import re

from torch import nn
from torch.profiler import record_function

PREFIX = "place: "  # of the ranges' names
TAIL = "tail"  # outside of layers' calls: the images' memory format, labels, losses, framed FCNs' convolutions
PARTS = 3  # of a module's name, in a head


@contextlib.contextmanager
def recorded(model):
    """Within it, calls of the model's modules are ranges, one where a call leads from one place to another.

    nn.Module itself is changed for that long, as a hook would be seen: some layers are computed together, without being
    called, but not if they have hooks (fastseg/nn/watched.py). Such a layer's place is that of the module around it.
    """
    names = places(model)
    call, entered = nn.Module.__call__, [TAIL]

    def recording(module, *args, **keywords):
        place = names.get(module, entered[-1])
        if place == entered[-1]:
            return call(module, *args, **keywords)
        entered.append(place)
        try:
            with record_function(PREFIX + place):
                return call(module, *args, **keywords)
        finally:
            entered.pop()

    nn.Module.__call__ = recording
    try:
        yield
    finally:
        nn.Module.__call__ = call


def places(model):
    """{module: place}: stem, layer1 and so on of a ResNet; conv1 to fc7 of a VGG; in heads parts by name and class."""
    modules = dict(model.named_modules())
    return {module: _place(name, modules) for name, module in modules.items()}


def _place(name, modules):
    parts = name.split(".")
    stage = next((part for part in parts if re.fullmatch(r"layer[1-9]\d*", part)), None)
    if stage or name == "":
        return stage or TAIL
    if parts[0] in ("backbone", "layer0"):
        return "stem"
    if numbered := re.match(r"(?:conv|relu|pool|fc|drop)(\d)", name):
        number = int(numbered[1])
        return f"conv{number}" if number < 6 else f"fc{number}"
    part = ".".join(parts[:PARTS])
    return f"{part} {type(modules[part]).__name__}"
