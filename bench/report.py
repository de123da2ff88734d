"""What the user sees of a run: tables on screen and a JSON file."""

import json
import os
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from fastseg.bench.formats import error, percent, significant, times

BUSY = 0.5  # load per core from which other processes visibly disturb the times


def header(result):
    """What was measured, on what, and how to read it; a warning if something else was using the machine."""
    said = result["machine"]
    lines = [
        f"{versions(said)}, {said['date']}",
        f"{place(result)}; measured {ceilings(result)}",
        *(f"  {name:<9}  {meaning}" for name, (_, meaning) in COLUMNS.items()),
    ]
    if said["load"] is not None and said["load"] > BUSY * said["cores"]:
        lines.append(f"This machine is busy (load {said['load']:.1f} on {said['cores']} cores): expect wide spreads.")
    return "\n".join(lines)


def versions(said):
    """Of a run's machine: fastseg's and what it ran with."""
    version = said["fastseg"] + (f" ({said['commit']})" if said["commit"] else "")
    known = [f"{name} {said[name]}" for name in ("torch", "triton", "cudnn", "driver") if said[name]]
    return ", ".join([f"fastseg {version}", *known])


def place(result):
    said = result["machine"]
    threads = [f"{said['threads']} threads"] if result["device"] == "cpu" else []
    return ", ".join([said["device"], *threads, result["dtype"]])


def ceilings(result):
    measured = f"copy {result['ceilings']['copy_gb_per_s']:.1f} GB/s"
    if result["ceilings"]["matmul_tflop_per_s"]:
        measured += f", matmul {result['ceilings']['matmul_tflop_per_s']:.3g} TFLOP/s"
    return measured


# heading -> (how one cell is written, what it means), the most wanted first
COLUMNS = {
    "median ms": (lambda entry: significant(entry.get("median_ms")), "time of one call"),
    "vs best": (
        lambda entry: times(entry.get("speedup")),
        "speed-up over the best peer, which is eager or compiled PyTorch in either layout",
    ),
    "peak MB": (lambda entry: significant(entry.get("peak_bytes"), unit=1e6), "memory of a call beyond its inputs"),
    "of copy": (lambda entry: percent(entry.get("gb_per_s_of_ceiling")), "GB/s as a share of a large copy's"),
    "of matmul": (
        lambda entry: percent(entry.get("tflop_per_s_of_ceiling")),
        "TFLOP/s as a share of a large matrix product's",
    ),
    "error": (
        lambda entry: error(entry.get("error")),
        "against float64: relative L2 norm, of label maps the share that differs",
    ),
    "20..80 %": (
        lambda entry: "..".join(significant(entry.get(key)) for key in ("p20_ms", "p80_ms")).strip("."),
        "where the middle of the times lies, ms",
    ),
    "GB/s": (lambda entry: significant(entry.get("gb_per_s")), "of what must be read and written at least"),
    "TFLOP/s": (lambda entry: significant(entry.get("tflop_per_s")), "effective: of all products, left out or not"),
    "executed": (
        lambda entry: significant(entry.get("executed_tflop_per_s")),
        "TFLOP/s of the products that ours does not leave out",
    ),
}


def table(bench, console):
    """One bench as a rich table, a block of rows per case. On a narrow terminal the last columns are left out."""
    entries = [entry for case in bench["cases"] for entry in case["providers"]]
    columns = {name: cell for name, (cell, _) in COLUMNS.items() if any(cell(entry) for entry in entries)}
    unlimited = console.options.update(max_width=1000)
    while True:
        drawn = _drawn(bench, columns)
        if console.measure(drawn, options=unlimited).maximum <= console.width or len(columns) == 1:
            return drawn
        columns.popitem()


def _drawn(bench, columns):
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("case", "provider", "layout"):
        drawn.add_column(name, no_wrap=True)
    for name in columns:
        drawn.add_column(name, justify="right", no_wrap=True)
    for case in bench["cases"]:
        labels = [Text(case["name"], style="bold"), Text(case["detail"])]
        for row, entry in enumerate(case["providers"]):
            cells = [cell(entry) for cell in columns.values()]
            if entry["status"] != "ok":
                cells = [Text(entry["status"], style="red")] + [""] * (len(columns) - 1)
            label = labels[row] if row < len(labels) else ""
            style = None if entry["peer"] else "green"
            drawn.add_row(label, entry["provider"], entry["layout"], *cells, style=style)
        drawn.add_section()
    return drawn


def remarks(bench):
    """Why something has no number: one line each."""
    if bench["skipped"]:
        return [f"{bench['title']}: skipped, {bench['skipped']}"]
    skipped = [f"{case['name']}: skipped, {case['skipped']}" for case in bench["cases"] if case["skipped"]]
    return skipped + [
        f"{case['name']}, {entry['provider']}, {entry['layout']}: {entry['status']}: {entry['reason']}"
        for case in bench["cases"]
        for entry in case["providers"]
        if entry["status"] != "ok"
    ]


def write_json(result, path):
    """Replace the file in one step: whoever is killed leaves the last complete state."""
    beside = Path(f"{path}.tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, path)
