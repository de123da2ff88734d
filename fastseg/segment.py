"""`fastseg segment`: photographs in, labels and overlays out, both at the photographs' own size."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from fastseg import dispatch, load_checkpoint, models, weight_options
from fastseg.cli import CommandError

INSTALL = 'pip install "fastseg[cli]"'
try:
    from PIL import Image, ImageOps
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise CommandError(f"segment needs {error.name}: {INSTALL}") from error

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PHOTOGRAPHS = (".jpg", ".jpeg", ".png")  # what is taken from a folder
OUTPUTS = ("_labels.png", "_overlay.jpg")
RANDOM = "WARNING: without --weights they are RANDOM: the labels mean nothing"
MOST_CLASSES = 256  # that a palette holds
# fmt: off
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


def configure(parser):
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="jpg or png files, or folders of them")
    add("--model", required=True, metavar="NAME", help=", ".join(models.list_models()))
    add("--weights", type=Path, metavar="FILE", help=".pth, .pt or .safetensors; without: random")
    weight_options.configure(parser)
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--device", help="cuda, cuda:1, cpu ...; default: cuda if there is a GPU")
    add("--dtype", choices=DTYPES, default="float32", help="of the network; default: float32")
    add("--size", type=int, default=520, help="shorter side the network sees, 0: as is; default: 520")
    add("--backend", choices=dispatch.BACKENDS, default=dispatch.forced, help="kernels; default: the fastest here")


def run(arguments):
    if arguments.backend not in (None, *dispatch.BACKENDS):
        raise CommandError(f"FASTSEG_BACKEND must be one of {', '.join(dispatch.BACKENDS)}, got {arguments.backend}")
    if arguments.size < 0:
        raise CommandError(f"--size must be 0 or more, got {arguments.size}")
    check_folder(arguments.output)
    device = pick_device(arguments.device)
    photographs, failed = find_photographs(arguments.images, arguments.output)
    jobs = name_outputs(photographs, arguments.output)
    model = build_model(arguments).to(device, DTYPES[arguments.dtype])

    with dispatch.use_backend(arguments.backend), progress_bar(len(jobs)) as bar:
        for path, stem in bar.track(jobs, description="segment"):
            try:
                photograph = read_photograph(path)
                labels = label(model, photograph, arguments.size)
                write_outputs(photograph, labels, stem)
            except NotImplementedError as error:  # no kernel for this device or dtype, whatever the image
                failed.append("; ".join(line.strip() for line in str(error).splitlines()))
                break
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                failed.append(f"{path}: {one_line(error)}")
            else:
                print(f"{path} -> {stem}{OUTPUTS[0]}, {stem.name}{OUTPUTS[1]}")
                print(*shares(labels, model.num_classes), sep="\n")
    for line in failed:
        print(f"fastseg: {line}", file=sys.stderr)
    return 2 if failed else 0


def progress_bar(images):
    """On standard error, so that the shares can be piped; shown to people and for more than one image."""
    console = Console(stderr=True)
    return Progress(
        console=console,
        disable=images < 2 or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    )


def one_line(error):
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return reason.splitlines()[0]


def check_folder(path):
    """Make it and try it now, not after the first network run."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CommandError(f"--output {path}: cannot write there ({one_line(error)})") from error


def pick_device(name):
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise CommandError(f"--device {name}: {one_line(error)}") from error


def build_model(arguments):
    name, weights = arguments.model, arguments.weights
    if name not in models.list_models():
        raise CommandError(f"--model must be one of {', '.join(models.list_models())}, got {name}")
    try:
        if weights is None:
            print(f"fastseg: {RANDOM}", file=sys.stderr)
            model = models.get_model(name)
        else:
            model = load_checkpoint(name, weights, arguments.source, **weight_options.keywords(arguments))
    except (OSError, ValueError, TypeError) as error:  # the latter for a keyword that the network has not
        raise CommandError(f"--model {name} --weights {weights}: {one_line(error)}") from error
    except ImportError as error:
        raise CommandError(f"{weights} needs {error.name}: {INSTALL}") from error
    if model.num_classes > MOST_CLASSES:
        got = model.num_classes
        raise CommandError(f"--weights {weights}: a paletted PNG holds {MOST_CLASSES} classes, got {got}")
    return model.eval()


def find_photographs(paths, output):
    """[(file, its name in the output folder)] of files and folders, and complaints. No file comes twice.

    What is found in a folder keeps its place below it. What an earlier run wrote is no photograph.
    """
    found, complaints = {}, []
    for path in paths:
        if not path.is_dir():
            found.setdefault(path.resolve(), (path, Path(path.stem)))
            continue
        files = [file for file in sorted(path.rglob("*")) if is_photograph(file, output)]
        if not files:
            complaints.append(f"{path}: no {', '.join(PHOTOGRAPHS)} in this folder")
        for file in files:
            found.setdefault(file.resolve(), (file, file.relative_to(path).with_suffix("")))
    return list(found.values()), complaints


def is_photograph(file, output):
    ours = file.name.endswith(OUTPUTS) and output.resolve() in file.resolve().parents
    return file.suffix.lower() in PHOTOGRAPHS and file.is_file() and not ours


def name_outputs(photographs, output):
    """[(file, path of its outputs before OUTPUTS)]. A taken name gets a number, and the user is told."""
    inputs = {path.resolve() for path, _ in photographs}  # no output replaces one
    used, jobs = set(), []
    for path, name in photographs:
        stem, number = output / name, 1
        while fold(stem) in used or inputs & {Path(f"{stem}{end}").resolve() for end in OUTPUTS}:
            number += 1
            stem = output / f"{name}_{number}"
        if number > 1:
            print(f"fastseg: {path}: the name {name} is taken, so this is {stem.name}", file=sys.stderr)
        used.add(fold(stem))
        jobs.append((path, stem))
    return jobs


def fold(path):
    return str(path).casefold()  # some file systems ignore case


def read_photograph(path):
    """The picture in RGB, upright as its EXIF orientation says."""
    with path.open("rb") as file:
        try:
            picture = ImageOps.exif_transpose(Image.open(file))
            if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever they trip over
            raise ValueError(f"not a readable image ({type(error).__name__}: {one_line(error)})") from error


def network_input(photograph, size, preprocess):
    """float32 (1, 3, h, w), what the network was trained with; the shorter side is `size`, or as it is if 0."""
    if size:
        shorter = min(photograph.size)
        sides = [side * size // shorter for side in photograph.size]
        photograph = photograph.resize(sides, Image.Resampling.BILINEAR)  # antialiased when it shrinks
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)  # (3, h, w)
    return preprocess(pixels.unsqueeze(0))


def label(model, photograph, size):
    """uint8 labels (H, W) at the photograph's size."""
    weight = next(model.parameters())
    x = network_input(photograph, size, model.preprocess).to(weight.device, weight.dtype)
    return model.predict(x, size=(photograph.height, photograph.width))[0].cpu()


def shares(labels, classes):
    """Lines with the share of each class that is there, largest first."""
    names = VOC_NAMES if classes == len(VOC_NAMES) else [f"class {k}" for k in range(classes)]
    counts = labels.flatten().bincount()
    present = counts.argsort(descending=True, stable=True)[: counts.count_nonzero()]
    return [f"  {names[k]:<12} {100 * counts[k] / labels.numel():5.1f} %" for k in present.tolist()]


def voc_palette():
    """[r0, g0, b0, r1, ...] of 256 labels: Pascal VOC's colours.

    A label's bits 0, 1, 2 are the highest bits of red, green, blue; bits 3, 4, 5 the next; 6, 7 the third.
    """
    return [
        sum(((label >> (3 * place + channel)) & 1) << (7 - place) for place in range(3))
        for label in range(256)
        for channel in range(3)
    ]


def write_outputs(photograph, labels, stem):
    stem.parent.mkdir(parents=True, exist_ok=True)
    palette = Image.fromarray(labels.numpy())
    palette.putpalette(voc_palette())
    overlay = Image.blend(photograph, palette.convert("RGB"), 0.5)
    for picture, end, options in zip((palette, overlay), OUTPUTS, ({}, {"quality": 90}), strict=True):
        write_whole(picture, Path(f"{stem}{end}"), **options)


def write_whole(picture, path, **options):
    """Write next to it, then rename: `path` is whole or not there."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        picture.save(partial, **options)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
