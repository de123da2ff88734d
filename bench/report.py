"""What the user sees of a run: tables on screen and a JSON file."""

import json
import os
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

BUSY = 0.5  # load per core from which other processes visibly disturb the times


def header(result):
    """What was measured, on what, and how to read it; a warning if something else was using the machine."""
    said = result["machine"]
    version = said["fastseg"] + (f" ({said['commit']})" if said["commit"] else "")
    versions = ", ".join(f"{name} {said[name]}" for name in ("torch", "triton", "cudnn", "driver") if said[name])
    ceilings = f"copy {result['ceilings']['copy_gb_per_s']:.1f} GB/s"
    if result["ceilings"]["matmul_tflop_per_s"]:
        ceilings += f", matmul {result['ceilings']['matmul_tflop_per_s']:.3g} TFLOP/s"
    place = said["device"] if result["device"] != "cpu" else f"{said['device']}, {said['threads']} threads"
    lines = [
        f"fastseg {version}, {versions}, {said['date']}",
        f"{place}, {result['dtype']}; measured {ceilings}",
        "vs best: speed-up over the best peer, which is eager or compiled PyTorch in either layout",
    ]
    if said["load"] is not None and said["load"] > BUSY * said["cores"]:
        lines.append(f"This machine is busy (load {said['load']:.1f} on {said['cores']} cores): expect wide spreads.")
    return "\n".join(lines)


# heading -> how one cell is written, the most wanted first
COLUMNS = {
    "median ms": lambda entry: significant(entry.get("median_ms")),
    "vs best": lambda entry: _times(entry.get("speedup")),
    "20..80 %": lambda entry: "..".join(significant(entry.get(key)) for key in ("p20_ms", "p80_ms")).strip("."),
    "peak MB": lambda entry: significant(entry.get("peak_bytes"), unit=1e6),
    "GB/s": lambda entry: significant(entry.get("gb_per_s")),
    "of copy": lambda entry: _percent(entry.get("gb_per_s_of_ceiling")),
    "TFLOP/s": lambda entry: significant(entry.get("tflop_per_s")),
    "of matmul": lambda entry: _percent(entry.get("tflop_per_s_of_ceiling")),
}


def table(bench, console):
    """One bench as a rich table, a block of rows per case. On a narrow terminal the last columns are left out."""
    entries = [entry for case in bench["cases"] for entry in case["providers"]]
    columns = {name: cell for name, cell in COLUMNS.items() if any(cell(entry) for entry in entries)}
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


def significant(value, unit=1):
    """Three significant digits, never in exponent form: 0.0123, 1.23, 123, 1230. None is empty."""
    if value is None:
        return ""
    value = value / unit
    limits = ((0, 99.95), (1, 9.995), (2, 0.9995), (3, 0.09995))
    return f"{value:.{next((decimals for decimals, limit in limits if value >= limit), 4)}f}"


def _times(speedup):
    return "" if speedup is None else f"{significant(speedup)}x"


def _percent(share):
    return "" if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"
