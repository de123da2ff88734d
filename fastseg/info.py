"""`fastseg info`: what is installed, and which kernel runs which op on this machine."""

import importlib
import importlib.util
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

import fastseg
from fastseg import dispatch


def configure(parser):
    parser.add_argument(
        "--kernels", action="store_true", help="what each GPU kernel needs: registers, stack, shared memory (a minute)"
    )


def version(package):
    """Its version, as its distribution or the module itself tells."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a build under another name, such as pytorch-triton
        return getattr(importlib.import_module(package), "__version__", "unknown")


def cpu_name():
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def device():
    """This machine's processor or GPU, in words."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        return f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    return f"{cpu_name()}, {torch.get_num_threads()} threads (no GPU is visible to torch)"


def versions():
    """[(what, its version)] of everything that decides how fast a kernel is."""
    rows = [("fastseg", fastseg.__version__), ("python", sys.version.split()[0]), ("torch", torch.__version__)]
    rows += [("triton", version("triton")), ("numpy", version("numpy"))]
    if torch.cuda.is_available():
        rows += [("CUDA of torch", torch.version.cuda), ("cuDNN", str(torch.backends.cudnn.version()))]
    return rows


def built():
    """[(what, how)] of the compiled library."""
    info = fastseg.build_info()
    if info["why_not"]:
        return [("compiled kernels", f"none: {info['why_not']}")]
    rows = [("compiled kernels", info["extension"]), ("built with torch", info["torch"])]
    if info["archs"]:
        kinds = ", ".join("PTX for later GPUs" if a.endswith("+PTX") else f"sm_{a}" for a in info["archs"])
        return [*rows, ("CUDA kernels", f"{kinds} (nvcc {info['cuda']})")]
    return [*rows, ("CUDA kernels", "none: built without nvcc, or with FASTSEG_CUDA=0")]


def kernels():
    """The table op x backend as lines, with a numbered reason for each gap. First in the order runs first."""
    reasons, rows = {}, [("op", "device", *dispatch.BACKENDS)]
    for name in dispatch.ops():
        for where in dispatch.ORDER:
            cells = []
            for backend in dispatch.BACKENDS:
                reason = dispatch.missing(name, backend, where)
                number = reasons.setdefault(reason, len(reasons) + 1) if reason else None
                cells.append(f"no ({number})" if reason else "yes")
            rows.append((name, where, *cells))
    lines = columns(rows)
    return lines + [f"  ({number}) {reason}" for reason, number in reasons.items()]


def columns(rows):
    """Rows of strings as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def resources():
    """The resource table of the GPU kernels, as lines."""
    from fastseg.bench.resources import cuobjdump, table

    if cuobjdump() is None:
        return ["  no cuobjdump, which reads machine code; triton brings one"]
    return columns([[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table() if "---" not in line])


def run(arguments):
    if arguments.kernels:
        print("\n".join(resources()))
        return 0
    forced = dispatch.forced
    print(f"fastseg on {device()}\n")
    print("\n".join(columns(versions() + built())), end="\n\n")
    print("\n".join(kernels()), end="\n\n")
    if forced:
        known = "" if forced in dispatch.BACKENDS else ", which does not exist"
        print(f"  FASTSEG_BACKEND: every op must run on {forced!r}{known}")
    for where, order in dispatch.ORDER.items():
        print(f"  order on {where}: {', '.join(order)}")
    for (name, where), order in dispatch.ORDER_FOR.items():
        print(f"  order of {name} on {where}: {', '.join(order)}")
    return 0
