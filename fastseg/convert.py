"""`fastseg convert`: files of weights, after which `load_checkpoint` need not be told anything about them."""

import os
import sys
from pathlib import Path

import torch

from fastseg import weight_options
from fastseg.cli import CommandError
from fastseg.models.loading import counters, empty, fitting, prepare, to_torchvision_state_dict
from fastseg.models.recognise import OWN


def configure(parser):
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="IN... OUT",
        help="files of weights; the last is a file or folder to write",
    )
    add("--network", metavar="NAME", help="of `fastseg.models.list_models()`; default: what the weights tell")
    weight_options.configure(parser)
    add("--overwrite", action="store_true", help="replace files that are there")
    add("--to", default=OWN, choices=(OWN, "torchvision"), help="whose names to write; default: %(default)s")


def run(arguments):
    *inputs, output = arguments.files
    if not inputs:
        raise CommandError("convert needs files of weights and, last, where to write")
    keywords = weight_options.keywords(arguments)
    into_folder = len(inputs) > 1 or output.is_dir()
    outputs = [output / f"{path.stem}.pth" if into_folder else output for path in inputs]
    if len(set(outputs)) < len(outputs):
        raise CommandError("two of these files have the same name, and would be written to the same place")

    failed = []
    for number, (path, out) in enumerate(zip(inputs, outputs, strict=True), start=1):
        place = f"[{number}/{len(inputs)}] " if len(inputs) > 1 else ""
        try:
            _check_output(out, path, arguments.overwrite)
            told = convert(path, out, arguments.network, arguments.source, keywords, arguments.to)
        except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
            failed.append(path)
            print(f"fastseg: {place}{path}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            print(f"{place}{path} -> {out}: {told}", flush=True)
    if failed and len(inputs) > 1:
        print(f"fastseg: {len(failed)} of {len(inputs)} not converted: {', '.join(map(str, failed))}", file=sys.stderr)
    return 2 if failed else 0


def _check_output(out, path, overwrite):
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError("would be written over itself")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there: another name, or --overwrite")
    if out.suffix == ".safetensors":
        raise ValueError(f"{out} would not be such a file but one of torch.save: name it .pth")


def convert(path, out, name=None, source="auto", keywords=None, to=OWN):
    """Write the weights of one file to another, and return a line on what they are. Raises as load_checkpoint does."""
    name, keywords, found = prepare(name, path, source, keywords or {})
    model = empty(name, keywords)
    weights = fitting(model, found)
    if to == OWN:
        preprocess = tuple(found.preprocess or model.preprocess)
        note = {"library": found.library, "network": name, "keywords": keywords, "preprocess": preprocess}
        content = {OWN: note, "state_dict": weights}
    else:
        model.load_state_dict({**counters(model), **weights})
        content = to_torchvision_state_dict(model)
    _write_whole(content, out)
    return f"{name} of {found.library}, {model.num_classes} classes"


def _write_whole(content, path):
    """Write next to it, then rename: `path` is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
