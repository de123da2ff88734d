"""Weights of other libraries in our networks, under their names and with all that names do not tell (sources.py)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from fastseg.models.checkpoints import COUNTER, factory_arguments, misfits, read_file, shortened
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.factories import get_model
from fastseg.models.fcn import FCN
from fastseg.models.pspnet import PSPNet
from fastseg.models.recognise import OWN, agrees, in_words, recognise, structure_of
from fastseg.models.sources import ALIASES, LIBRARIES, SOURCES, modules

FAMILIES = {kind.family: kind for kind in (FCN, PSPNet, DeepLabV3)}
STRIDE_IN_NAME = re.compile(r"(?:^|[-_.])(?:d|os)(8|16|32)(?=[-_.]|$)")  # mmsegmentation's r50-d8, VainF's os16
STAGED, AT_ONCE = "fcn8s_vgg16", "fcn8s_atonce_vgg16"
AUX = ("aux.", "aux_classifier.")  # our names of what an auxiliary head consists of
# What a module computes with besides its weights, `steps` being the skips of a SkipFCN and their scales; what follows
# from another comes last.
LAYERS = ("dilation", "stride", "ceil_mode", "align_corners", "pool_first", "bins", "mode", "eps", "groups", "padding")
NUMERICS = ("steps", *LAYERS)


def load_checkpoint(model_or_name, path_or_state_dict, source="auto", **keywords):
    """Weights of this or another library in one of our networks, which computes what the other library's does.

    model_or_name       a name of `list_models`, whose network is built as the weights want it; or a network, which must
                        agree with the weights in all that it computes
    path_or_state_dict  what torch.save or safetensors wrote, or {name: tensor}. Weights are taken out of a training
                        checkpoint, and their names out of "module.", "_orig_mod." and "base."
    source              "torchvision", "segmentation_models_pytorch" (or "smp"), "mmsegmentation" (or "mmseg"),
                        "semseg", "vainf", "kazuto1011", "pytorchcv", "caffe" (or "pytorch-fcn"); "fastseg" for what was
                        trained here, in whatever form; "auto" tells it by the names
    keywords            of the network that is built. aux_loss=False leaves an auxiliary head out

    What the names do not tell must be said by keywords, where weights of several forms are about under the same names:

    mmsegmentation               output_stride and align_corners, unless its configuration is in the file. That may also
                                 say other rates, bins, multi_grid or contract_dilation, and is refused if no network
                                 here computes what it says
    segmentation_models_pytorch  output_stride
    vainf                        output_stride: its functions build 8, and its training script 16
    kazuto1011                   output_stride, rates and multi_grid
    caffe                        at_once, of fcn8s_vgg16

    An output stride in the name of a file, such as r50-d8 or os16, is taken where nothing else says it. The networks of
    torchvision, semseg and pytorchcv have one form each. State dicts of networks here bear their form and `preprocess`,
    as long as they stay what `state_dict` returned; as plain dicts or safetensors they are what their names say: a
    DeepLabV3 of output stride 16 then needs source="fastseg" and its keywords.

    Returns the model, with the `preprocess` that its weights want. Runs no code that a file may hold. Raises OSError if
    it cannot be opened, and ValueError if it holds no weights, if whose they are is unknown, if some are missing, left
    over or of other shapes, or if the model computes something else than the source: nothing is loaded then.
    """
    if isinstance(model_or_name, str):
        name, keywords, found = prepare(model_or_name, path_or_state_dict, source, keywords)
        model = empty(name, keywords)
        weights = fitting(model, found)
    elif not isinstance(model_or_name, torch.nn.Module):
        got = type(model_or_name).__name__
        raise TypeError(f"load_checkpoint: model_or_name must be a name of list_models or a module, got {got}")
    elif keywords:
        got = in_words(keywords)
        raise ValueError(f"load_checkpoint: keywords are for a network that is built, and this one is there, got {got}")
    else:
        model, found = model_or_name, _recognise(model_or_name, path_or_state_dict, source)
        weights = fitting(model, found)
        _check_numerics(model, found)
    model.load_state_dict({**counters(model), **weights})
    if found.preprocess is not None:
        model.get_submodule(found.path).preprocess = found.preprocess
    return model


def empty(name, keywords):
    """The network without any weights, so that none are made in vain."""
    with torch.device("meta"):
        model = get_model(name, **keywords)
    return model.to_empty(device="cpu")


def counters(model):
    """Of the steps of BatchNorms, which no file need have: {name: 0}."""
    return {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.endswith(COUNTER)}


def prepare(name, path_or_state_dict, source, keywords):
    """(name, keywords, Found) of the network that weights are of; without a name it is theirs.

    Raises as load_checkpoint does, but does not see whether they fit: see `fitting`.
    """
    found = _recognise(name, path_or_state_dict, source)
    name, keywords = _network(name, found, keywords)
    return name, keywords, found if keywords.get("aux_loss", True) else _without_aux(found)


def _recognise(model_or_name, path_or_state_dict, source):
    known = ("auto", OWN, *LIBRARIES)
    source = ALIASES.get(source, source)
    if source not in known:
        raise ValueError(f"load_checkpoint: source must be one of {', '.join(known)}, got {source!r}")
    is_content = isinstance(path_or_state_dict, Mapping)
    content = path_or_state_dict if is_content else read_file(path_or_state_dict)

    def own_names(tensors):
        if isinstance(model_or_name, torch.nn.Module):
            return _names(model_or_name)
        with torch.device("meta"):
            return _names(get_model(model_or_name, **factory_arguments(tensors))) if model_or_name else ()

    found = recognise(content, source, own_names)
    stride = None if is_content else STRIDE_IN_NAME.search(Path(path_or_state_dict).stem)
    return found._replace(hint={"output_stride": int(stride[1])} if stride else {})


def _network(name, found, keywords):
    """(name, keywords) of the network that was found. Raises ValueError if it is another than that of this name, or if
    keywords leave its form open or contradict it."""
    if found.network is None:
        return _of_caller(name, {**factory_arguments(found.tensors), **found.structure}, keywords)
    name, keywords = _of_its_form(name or found.network, keywords)
    if name != found.network:
        which = f"the weights are a {found.network} of {found.library}, got {name!r}"
        raise ValueError(f"load_checkpoint: {which}{_lacking(name, found)}")
    forms = [form for form in found.forms if agrees(form, keywords)]
    if len(forms) > 1:
        hint = {key: value for key, value in found.hint.items() if key not in keywords}
        forms = [form for form in forms if agrees(form, hint)]
        keywords = {**hint, **keywords}
    if not forms:
        which = f"no {found.network} of {in_words(keywords)}"
        raise ValueError(f"load_checkpoint: {found.library} has {which}. {_wanted(found)}")
    if len(forms) > 1:
        _, choices = _compared(forms)
        several = f"{found.library} has several forms of this network, whose weights have the same names"
        raise ValueError(f"load_checkpoint: {several}: say {choices}")
    return found.network, {**found.structure, **forms[0], **keywords}


def _lacking(name, found):
    """Which names and shapes of another network the weights have not, as the end of a sentence."""
    with torch.device("meta"):
        classes = found.structure.get("num_classes")
        own = get_model(name, **({} if classes is None else {"num_classes": classes})).state_dict()
    wanted = {found.theirs(key): tensor for key, tensor in own.items() if not key.endswith(COUNTER)}
    listed = misfits(wanted, found.tensors)
    return f", for which there are {listed}" if listed else ""


def _of_caller(name, told, keywords):
    if name is None:
        raise ValueError("load_checkpoint: these weights do not tell which network they are of: say its name")
    keywords = {**told, **keywords}
    if name == STAGED and "at_once" not in keywords:
        raise ValueError(
            f"load_checkpoint: weights of FCN-8s trained in stages and at once have the same names: say at_once=False, "
            f"or at_once=True for a {AT_ONCE}"
        )
    return _of_its_form(name, keywords)


def _of_its_form(name, keywords):
    """(name, keywords) of an FCN-8s without at_once, which stands in the name."""
    if name in (STAGED, AT_ONCE) and "at_once" in keywords:
        keywords = dict(keywords)
        name = AT_ONCE if keywords.pop("at_once") else STAGED
    return name, keywords


def _without_aux(found):
    """The weights without those of an auxiliary head."""
    prefixes = tuple(f"{theirs}." for ours, theirs in found.modules.items() if ours.startswith(AUX)) or AUX
    tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(prefixes)}
    return found._replace(tensors=tensors, structure={**found.structure, "aux_loss": False})


def fitting(model, found):
    """{our name: tensor} of the weights. Raises ValueError, in the file's names, unless all are there and fit."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    wanted = {found.theirs(name): tensor for name, tensor in own.items()}
    if listed := misfits(wanted, found.tensors):
        raise ValueError(f"load_checkpoint: the weights do not fit the model: {listed}{_likely(model, found)}")
    return {name: found.tensors[found.theirs(name)] for name in own}


def _likely(model, found):
    """The likely cause of a misfit, as the end of a sentence."""
    if found.network is None:
        return ""
    family = _family(model)
    if found.network.partition("_resnet")[0] != family:
        return f". They are a {found.network} of {found.library}, the model is a {type(model).__name__}"
    source = next(source for source in SOURCES if source.family == family)
    own = {**structure_of(model.state_dict(), modules(source.ours)), "num_classes": model.num_classes}
    theirs = {"blocks": found.blocks, **found.structure} if found.blocks else {}
    differing = [f"{key}={theirs[key]!r}, the model {own.get(key)!r}" for key in theirs if theirs[key] != own.get(key)]
    cause = f"the file has {'; '.join(differing)}" if differing else "the file is incomplete or another library's"
    return f". Likely {cause}. {_wanted(found)}"


def _family(model):
    return next((name for name, kind in FAMILIES.items() if isinstance(model, kind)), None)


def _wanted(found):
    same, choices = _compared(found.forms)
    choices = f" with {choices}" if choices else ""
    return f"These weights want {found.network}({in_words({**found.structure, **same})}){choices}"


def _compared(forms):
    """(keywords that all forms have, in words those that decide between them)."""
    values = {key: list(dict.fromkeys(repr(form[key]) for form in forms)) for key in forms[0]}
    deciding = []
    for key in values:
        if _told_apart(forms, [*deciding, key]) > _told_apart(forms, deciding):
            deciding.append(key)
    choices = ", ".join(f"{key}={' or '.join(values[key])}" for key in deciding)
    return {key: forms[0][key] for key, found in values.items() if len(found) == 1}, choices


def _told_apart(forms, keys):
    return len({tuple(repr(form[key]) for key in keys) for form in forms})


def _check_numerics(model, found):
    """Raises ValueError if the model computes something else than every form that was found."""
    network = model.get_submodule(found.path)
    found_numerics = [differences(network, _reference(found, form)) for form in found.forms]
    if not found_numerics or not all(found_numerics):
        return
    nearest = min(found_numerics, key=len)
    raise ValueError(
        f"load_checkpoint: the model computes something else than {found.library}'s: {shortened(nearest)}. "
        f"{_wanted(found)}; source={OWN!r} loads weights that were trained here into any form"
    )


def _reference(found, form):
    with torch.device("meta"):
        if found.network in FAMILIES:
            return FAMILIES[found.network](found.blocks, **found.structure, **form)
        return get_model(found.network, **found.structure, **form)


def differences(model, reference):
    """["layer.stride: wanted 2, got 1", ...]: what a model computes otherwise than a reference of the same layers."""
    got, wanted = numerics(model), numerics(reference)
    return [f"{key}: wanted {wanted[key]}, got {got[key]}" for key in wanted if key in got and wanted[key] != got[key]]


def numerics(model):
    """{"layer.attribute": value} of all that the layers of a model compute with besides their weights."""
    return {
        f"{path}.{name}".removeprefix("."): getattr(module, name)
        for name in NUMERICS
        for path, module in model.named_modules()
        if hasattr(module, name)
    }


def _names(model):
    return [name for name in model.state_dict() if not name.endswith(COUNTER)]


def to_torchvision_state_dict(model):
    """The state dict of an FCN or DeepLabV3 for torchvision's network of the same name.

    Raises ValueError if the model is another, or computes something else than torchvision's.
    """
    source = next((s for s in SOURCES if s.library == "torchvision" and s.family == _family(model)), None)
    if source is None:
        raise ValueError(f"to_torchvision_state_dict: torchvision has no {type(model).__name__}")
    found = recognise(model.state_dict(), "torchvision")
    reference = _reference(found, found.forms[0])
    listed = misfits(reference.state_dict(), model.state_dict()) or shortened(differences(model, reference))
    if listed:
        raise ValueError(f"to_torchvision_state_dict: the model is not torchvision's: {listed}")
    return model.state_dict()
