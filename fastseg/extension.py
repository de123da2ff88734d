"""The compiled kernels, fastseg/_C.abi3.so: found, loaded once, and asked what they were built for."""

import functools
import importlib
import importlib.util
import warnings
from importlib import metadata
from pathlib import Path

_FILE = "_C.abi3.so"


def _installed_elsewhere():
    """Files of an installed fastseg: a source checkout that shadows it has no library of its own."""
    for distribution in metadata.distributions(name="fastseg"):
        for file in distribution.files or ():
            if file.name == _FILE:
                yield Path(distribution.locate_file(file))


@functools.cache
def _load():
    """(module, None), or (None, why there is none). Loading registers the kernels with torch."""
    beside = Path(__file__).with_name(_FILE)
    path = next((p for p in (beside, *_installed_elsewhere()) if p.exists()), None)
    if path is None:
        return None, "the compiled kernels are not built: run pip install . where fastseg's setup.py is"
    spec = importlib.util.spec_from_file_location("fastseg._C", path)
    try:
        module = importlib.util.module_from_spec(spec)  # runs all there is: the registrations and PyInit__C
    except ImportError as error:
        warnings.warn(f"fastseg: {path} does not load, so the slow reference runs: {error}", stacklevel=2)
        return None, f"{path} does not load: {error}"
    built, source = _said(module).get("version"), importlib.import_module("fastseg").__version__
    if built != source:
        return None, f"{path} is of version {built}, but this is {source}: run pip install ."
    return module, None


def _said(module):
    return dict(item.split("=", 1) for item in module.BUILD.split(","))


def build_info():
    """What was built, as a dict: version, torch and cuda at build time, archs (a list, e.g. ["80", "90a", "90+PTX"]),
    extension (its path, or None) and why_not (the reason if there is none)."""
    module, why_not = _load()
    said = _said(module) if module else {}
    return {
        "version": said.get("version"),
        "torch": said.get("torch"),
        "cuda": said.get("cuda", "none"),
        "archs": [arch for arch in said.get("archs", "").split("/") if arch],
        "extension": module.__spec__.origin if module else None,
        "why_not": why_not,
    }


def runs_on(arch, capability):
    """Whether code built for `arch` ("80", "90a", "90+PTX") runs on a GPU of `capability`, e.g. (9, 0)."""
    number = arch.removesuffix("+PTX").rstrip("af")
    built = (int(number[:-1]), int(number[-1]))
    if arch.endswith("a"):
        return capability == built
    if arch.endswith("+PTX"):
        return capability >= built
    return capability[0] == built[0] and capability[1] >= built[1]
