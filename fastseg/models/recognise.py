"""What the names and shapes in a file of weights tell: whose network it is, of which depth, stem, classes and heads."""

import re
from typing import NamedTuple

from fastseg.models.checkpoints import COUNTER, PREFIXES, factory_arguments, inner, shortened, unwrapped
from fastseg.models.configuration import EPS, configuration
from fastseg.models.preprocess import Preprocess
from fastseg.models.resnet import BLOCKS
from fastseg.models.segmenter import FORM
from fastseg.models.sources import LIBRARIES, MMSEG, SKIP_FCN, SOURCES, modules

OWN = "fastseg"
# Of networks that have no such keyword.
UNSAID = {"output_stride": 8, "contracted": True, "multi_grid": None, "stride_first": False, "head_dilation": 1}
UNSAID |= {"bins": (1, 2, 3, 6), "eps": EPS}


class Found(NamedTuple):
    """Weights of one of our networks.

    library      whose they are
    tensors      {the file's name: tensor}
    network      its name in `list_models`; of blocks that none there has, only "fcn", "pspnet" or "deeplabv3"; or None
                 if only the caller knows
    blocks       of its ResNet's stages, or None
    structure    keywords that names and shapes tell: stem, num_classes, aux_loss
    forms        keywords that they do not tell, one of these dicts; () if the network may be of any form
    hint         keywords that decide between forms if nothing else does
    modules      {our name of a module: the file's} where they differ
    path         of the network in the module that the weights are of, "" if it is that
    preprocess   of images, or None if it is the network's own
    """

    library: str
    tensors: dict
    network: str | None = None
    blocks: tuple | None = None
    structure: dict = {}
    forms: tuple = ()
    hint: dict = {}
    modules: dict = {}
    path: str = ""
    preprocess: Preprocess | None = None

    def theirs(self, name):
        """The file's name of what has this name here."""
        module, dot, parameter = name.rpartition(".")
        return self.modules.get(module, module) + dot + parameter


def recognise(content, library="auto", own_names=lambda tensors: ()):
    """Found of what a file holds; own_names(tensors) are those of the network that the caller has in mind.

    Raises ValueError if there are no weights, if whose they are is unknown, or if no network here computes the same.
    """
    tensors = {name: tensor for name, tensor in unwrapped(content).items() if not name.endswith(COUNTER)}
    if OWN in content:  # `fastseg convert` wrote it
        return _noted(content[OWN], tensors)
    family, form, about = _trained_here(content)
    if family and library == "auto":
        return _own(family, form, tensors, **about)
    if library == OWN:
        return Found(OWN, tensors, structure=form, **about)
    if library == SKIP_FCN or (library == "auto" and "score_fr.weight" in tensors):
        return Found(SKIP_FCN, tensors)
    source, known, present = _likeliest(tensors, library)
    if library == "auto" and known < present and set(own_names(tensors)) == tensors.keys():
        return Found(OWN, tensors)
    if 2 * known <= present:
        whose = f"none of {', '.join(LIBRARIES)}" if library == "auto" else f"not {library}"
        names = shortened(list(tensors))
        raise ValueError(f"load_checkpoint: whose weights these are is unknown: {whose} has such names ({names})")
    if source.why_not:
        which = f"a {source.family} of {source.library}"
        raise ValueError(f"load_checkpoint: {which} is not supported, as {source.why_not}")
    return _found(source, tensors, configuration(content) if source.library == MMSEG else {})


def _noted(note, tensors):
    """Found of what `fastseg convert` wrote."""
    try:
        library, network, form, preprocess = (note[key] for key in ("library", "network", "keywords", "preprocess"))
        return Found(library, tensors, network, forms=(dict(form),), preprocess=Preprocess(*preprocess))
    except (KeyError, TypeError, ValueError) as error:
        wanted = "library, network, keywords and preprocess, as fastseg convert writes"
        raise ValueError(f"load_checkpoint: under {OWN!r} there must be {wanted}, got {note!r}") from error


def _trained_here(content):
    """(family, keywords, path and preprocess) that a state dict says of one of our networks; or (None, {}, {})."""
    metadata = getattr(inner(content), "_metadata", None) or {}
    path = next((path for path, of_module in metadata.items() if FORM in of_module), None)
    if path is None:
        return None, {}, {}
    form = dict(metadata[path][FORM])
    family, preprocess = form.pop("family", None), form.pop("preprocess", None)
    known = sorted({source.family for source in SOURCES})
    if family not in known:
        raise ValueError(f"load_checkpoint: the state dict's family must be one of {', '.join(known)}, got {family!r}")
    path = f"{path}."[PREFIXES.match(f"{path}.").end() : -1]
    return family, form, {"path": path, "preprocess": preprocess and Preprocess(*preprocess)}


def _own(family, form, tensors, path, preprocess):
    names = next(source.ours for source in SOURCES if source.family == family)
    own = {name.removeprefix(f"{path}."): tensor for name, tensor in tensors.items()}
    blocks = structure_of(own, modules(names))["blocks"]
    network, structure = _network_of(family, blocks), factory_arguments(own)
    return Found(OWN, tensors, network, blocks, structure, (form,), path=path, preprocess=preprocess)


def _network_of(family, blocks):
    depths = {blocks: depth for depth, blocks in BLOCKS.items()}
    return f"{family}_resnet{depths[blocks]}" if blocks in depths else family


def _likeliest(tensors, library):
    """The source that knows most of the modules, how many, and of how many."""
    present = {name.rpartition(".")[0] for name in tensors}
    sources = [source for source in SOURCES if library in ("auto", source.library)]
    known = [len(present & set(modules(source.names).values())) for source in sources]
    return sources[known.index(max(known))], max(known), len(present)


def _found(source, tensors, said):
    """said: keywords that decide between the source's forms, and may make another one; or nothing."""
    theirs, ours = modules(source.names), modules(source.ours)
    present = {name.rpartition(".")[0] for name in tensors}
    shared = sorted(theirs.keys() & ours.keys(), key=lambda unit: theirs[unit] in present)  # of two stems the one there
    forms = source.forms
    if said:
        other = {key: value for key, value in said.items() if key not in forms[0] and UNSAID.get(key, value) != value}
        if other:
            which = f"{source.family} here of {in_words(other)}, as the file's configuration says"
            raise ValueError(f"load_checkpoint: there is no {which}")
        forms = ({key: said.get(key, value) for key, value in forms[0].items()},)
    structure = structure_of(tensors, theirs)
    blocks = structure.pop("blocks")
    return Found(
        source.library,
        tensors,
        _network_of(source.family, blocks),
        blocks,
        structure,
        forms,
        modules={ours[unit]: theirs[unit] for unit in shared},
        preprocess=source.preprocess,
    )


def structure_of(tensors, names):
    """blocks and keywords that shapes tell, of names = {"{unit}.conv": module}."""
    weights = {unit: tensors[f"{name}.weight"] for unit, name in names.items() if f"{name}.weight" in tensors}
    blocks = [0, 0, 0, 0]
    for unit in weights:
        if match := re.match(r"(\d)\.(\d+)\.", unit):
            stage, block = int(match[1]) - 1, int(match[2])
            blocks[stage] = max(blocks[stage], block + 1)
    stem = ("stem.0.conv", "stem.1.conv", "stem.2.conv") if "stem.1.conv" in weights else ("stem.conv",)
    structure = {"blocks": tuple(blocks), "aux_loss": "aux.classes.conv" in weights}
    if all(unit in weights for unit in stem):
        structure["stem"] = tuple(weights[unit].shape[0] for unit in stem)
    if "classes.conv" in weights:
        structure["num_classes"] = weights["classes.conv"].shape[0]
    return structure


def agrees(form, keywords):
    """Whether a form has these keywords, as far as it has a say in them."""
    said = {**UNSAID, **form}
    return all(_as_tuple(said[key]) == _as_tuple(value) for key, value in keywords.items() if key in said)


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def in_words(keywords):
    return ", ".join(f"{key}={value!r}" for key, value in keywords.items())
