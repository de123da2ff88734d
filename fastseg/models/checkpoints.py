"""Weights from files into networks: all of them, or an error that says which do not fit."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch

# Where training scripts keep the weights, and what wrappers of modules put before their names.
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "params_ema")
PREFIXES = re.compile(r"((module|_orig_mod|base)\.)*")
AVERAGED = "n_averaged"  # how many, in a torch.optim.swa_utils.AveragedModel
COUNTER = ".num_batches_tracked"  # of a BatchNorm's steps
SHOWN = 3  # names per kind of misfit


def read_state_dict(path):
    """{name: tensor} on the CPU from a .safetensors file, or from any other as torch.save wrote it.

    Runs no code that a file may hold. Takes the weights out of a training checkpoint and strips the "module."
    that DistributedDataParallel puts before names, and the like. Raises OSError if the file cannot be opened,
    ValueError if it holds no weights, ImportError for a .safetensors file without that package.
    """
    return unwrapped(read_file(path), path)


def read_file(path):
    """All that a file of weights holds. Raises as read_state_dict does."""
    path = Path(path)
    with path.open("rb"):  # a file that cannot be opened is an OSError, whatever the format
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def unwrapped(content, path="the state dict"):
    """{name: tensor} of what a file holds. Raises ValueError if it holds no weights."""
    content = inner(content)
    if got := _not_weights(content):
        raise ValueError(f"read_state_dict: {path} must hold names and tensors, got {got}")
    return {name[PREFIXES.match(name).end() :]: tensor for name, tensor in content.items() if name != AVERAGED}


def inner(content):
    """What a training checkpoint holds the weights in, as it is there."""
    if not isinstance(content, Mapping):
        return content
    return next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)


def _not_weights(content):
    if not isinstance(content, Mapping):
        return type(content).__name__
    if not content:
        return "nothing"
    if names := [name for name in content if not isinstance(name, str)]:
        return f"{type(names[0]).__name__} {names[0]!r} for a name"
    wrong = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    return f"{type(content[wrong[0]]).__name__} under {wrong[0]!r}" if wrong else None


class Ignored:
    """In place of an object of a training library that lies beside the weights. Does nothing, whatever it is told."""

    def __init__(self, *args, **keywords):
        pass

    def __setstate__(self, state):
        pass


def _read_torch(path):
    beside = ["argparse.Namespace"]  # torchvision's training script saves its options
    with contextlib.suppress(Exception):  # a file that cannot be listed, such as one of before 2020
        beside += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    try:
        with torch.serialization.safe_globals([(Ignored, name) for name in beside]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a broken file surfaces as any of a dozen types, some with pages of advice
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"read_state_dict: {path} is not a file of weights ({reason})") from error


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"read_state_dict: {path} is not a safetensors file ({error})") from error


def factory_arguments(state_dict):
    """The keywords for the factory of these weights' network, such as {"num_classes": 21, "aux_loss": True}.

    The last layer of "classifier", of "cls" or "score_fr", says how many classes; without one, "num_classes" is left
    out. A PSPNet's stem shows, a DeepLabv3's form and head, and where weights of a SkipFCN come from, but not for VGG.
    """
    if "score_fr.weight" in state_dict:
        return _skip_fcn_arguments(state_dict)
    keywords = {"aux_loss": any(name.startswith(("aux_classifier.", "aux.")) for name in state_dict)}
    layers = [
        match
        for name, tensor in state_dict.items()
        if tensor.dim() and (match := re.fullmatch(r"(?:classifier|cls)\.(\d+)\.weight", name))
    ]
    if layers:
        last = max(layers, key=lambda match: int(match[1]))[0]  # files need not keep the layers' order
        keywords["num_classes"] = state_dict[last].shape[0]  # (C, channels, 1, 1)
    if "layer0.0.weight" in state_dict and "layer0.3.weight" not in state_dict:  # PSPNet's has three convolutions
        keywords["stem"] = tuple(state_dict["layer0.0.weight"].shape[:1])
    if "backbone.layer5.0.conv1.weight" in state_dict:
        keywords["form"] = "cascade"
    if "classifier.0.project.0.weight" in state_dict and "classifier.4.weight" not in state_dict:
        keywords["head"] = "paper" if "classifier.1.weight" in state_dict else "mmseg"
    if "classifier.0.3.weight" in state_dict:
        keywords["head"] = "mmseg"
    if "backbone.stem.0.weight" in state_dict:
        keywords["stem"] = tuple(state_dict[f"backbone.stem.{place}.weight"].shape[0] for place in (0, 3, 6))
    return keywords


def _skip_fcn_arguments(state_dict):
    def first_side(name):
        return state_dict[name].shape[0] if name in state_dict and state_dict[name].dim() else None

    keywords = {"num_classes": first_side("score_fr.weight"), "fc_channels": first_side("fc6.weight")}
    if "conv1.bn.weight" in state_dict or first_side("conv1.weight") == 64:  # GoogLeNet, AlexNet
        keywords["source"] = "torchvision"
    return {name: value for name, value in keywords.items() if value is not None}


def load_weights(model, state_dict):
    """Copy a state dict into a model and return the model. Nothing is loaded unless all names and shapes fit.

    Raises one ValueError that counts missing, unexpected and misshapen entries and names the first of each.
    Only BatchNorm's step counters may be missing: old files have none, and a fixed momentum never reads them.
    """
    wanted = model.state_dict()
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    state_dict = {**counters, **state_dict}
    if listed := misfits(wanted, state_dict):
        raise ValueError(f"load_weights: the weights do not fit the model: {listed}")
    model.load_state_dict(state_dict)
    return model


def misfits(wanted, state_dict):
    """What {name: tensor} lacks, has too many and has in another shape than is wanted, as text; empty if nothing."""
    common = [name for name in wanted if name in state_dict]
    found = {
        "missing": [name for name in wanted if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in wanted],
        "of wrong shape": [
            f"{name}: wanted {tuple(wanted[name].shape)}, got {tuple(state_dict[name].shape)}"
            for name in common
            if wanted[name].shape != state_dict[name].shape
        ],
    }
    return ", ".join(f"{len(names)} {kind} ({shortened(names)})" for kind, names in found.items() if names)


def shortened(names):
    return f"{'; '.join(names[:SHOWN])}{'; ...' if len(names) > SHOWN else ''}"
