"""`fastseg bench`: time every kernel and network against PyTorch on this machine."""

import importlib.util
from pathlib import Path

import torch

from fastseg.bench import harness, schema
from fastseg.cli import CommandError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDTH = 200  # where there is no terminal: no column is cut or left out


def configure(parser):
    parser.add_argument("op", nargs="*", metavar="OP", help="which benches to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds: about three minutes on two cores")
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the results after every case (bench/schema.py: its fields)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="write a PNG: speed-ups, roofline, memory of training"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        type=Path,
        help="measure nothing: tell what changed from one JSON file to another; exit code 1 if something regressed",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")


def run(arguments):
    _require("rich", *(["matplotlib"] if arguments.plot else []))
    if arguments.compare:
        if arguments.op or arguments.quick or arguments.json or arguments.plot:
            raise CommandError("bench: --compare measures nothing: it goes with no OP, --quick, --json or --plot")
        return _compare(*arguments.compare)
    device = _device(arguments.device)
    dtype = DTYPES[arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    benches = _chosen(arguments.op)
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise CommandError(f"bench: cannot write {path}")
    from fastseg.bench.screen import Screen

    with Screen(WIDTH) as screen:
        result = harness.run(
            benches,
            device,
            dtype,
            harness.QUICK if arguments.quick else harness.FULL,
            save=lambda result: screen.update(result, arguments.json),
            tell=screen.tell,
        )
    if arguments.plot:
        from fastseg.bench.plot import write_png

        write_png(schema.filled(result), arguments.plot)
    entries = [e for bench in result["benches"] for case in bench["cases"] for e in case["providers"]]
    return 1 if any(entry["status"] != "ok" and not entry["peer"] for entry in entries) else 0


def _compare(*paths):
    from fastseg.bench.compare_report import show

    try:
        return int(show(*map(schema.read, paths), WIDTH))
    except schema.ResultError as error:
        raise CommandError(f"bench: {error}") from error


def _require(*packages):
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        raise CommandError(f'bench needs {" and ".join(absent)}: pip install "fastseg[cli]"')


def _device(name):
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"bench: --device must be cpu, cuda or cuda:<number>, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"bench: --device must be cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"bench: --device {name}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _chosen(names):
    benches = harness.discover()
    unknown = [name for name in names if name not in benches]
    if unknown:
        raise CommandError(f"bench: no bench named {', '.join(unknown)}; there are: {', '.join(benches)}")
    return {name: bench for name, bench in benches.items() if name in names or not names}
