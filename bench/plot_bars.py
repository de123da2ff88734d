"""Panels of bars, a row per provider: how many times faster than the best peer, and how much memory training takes."""

import math
from functools import partial

from matplotlib.transforms import blended_transform_factory

from fastseg.bench.formats import significant
from fastseg.bench.passes import BOTH
from fastseg.bench.plot_panel import Panel, logarithmic

INCHES_PER_ROW = 0.24
AXIS = 0.3  # inches
OURS, PEER = "#1b7837", "#9aa0a6"
TRAINING = (BOTH, "training step")


def speedups(result):
    """One panel per bench. Bars start at 1x, the best peer; whiskers span 20 to 80 %."""
    scale = "speed-up over the best of eager and torch.compile in either layout"
    return [
        _panel(f"{bench['title']}\n{scale}", rows, _draw_speedups)
        for bench in result["benches"]
        if _ran(rows := [row for case in bench["cases"] for row in _rows(case["name"], case, _with(case, "speedup"))])
    ]


def memory(result):
    """At most one panel: peak memory of the passes that train, of each provider in its leaner layout."""
    rows = []
    for bench in result["benches"]:
        for case in bench["cases"]:
            if case["pass"] in TRAINING:
                leanest = {}
                for entry in sorted(_with(case, "peak_bytes"), key=_spent):
                    leanest.setdefault(entry["provider"], entry)
                entries = sorted(leanest.values(), key=lambda entry: not entry["peer"])
                rows += _rows(f"{bench['name']}: {case['name']}", case, entries)
    return [_panel("peak memory of training", rows, _draw_memory)] if _ran(rows) else []


def _spent(entry):
    return math.inf if entry["status"] != "ok" else entry["peak_bytes"]


def _with(case, figure):
    """What has that figure, and what should have had it."""
    return [entry for entry in case["providers"] if entry["status"] != "ok" or entry[figure]]


def _rows(name, case, entries):
    """(label, entry) from top to bottom; entry None is the case's heading."""
    labelled = [(f"{entry['provider']}, {entry['layout']}", entry) for entry in entries]
    return [(f"{name}, {case['detail']}", None), *labelled] if entries else []


def _ran(rows):
    return any(entry and entry["status"] == "ok" for _, entry in rows)


def _panel(title, rows, draw):
    return Panel(title, INCHES_PER_ROW * len(rows) + AXIS, partial(draw, rows=rows))


def _draw_speedups(axis, rows):
    low = high = 1.0
    for y, entry in _good(axis, rows, 1):
        speedup = entry["speedup"]
        worst, best = (speedup * entry["median_ms"] / entry[key] for key in ("p80_ms", "p20_ms"))
        low, high = min(low, worst), max(high, best)
        axis.barh(y, speedup - 1, left=1, height=0.75, color=_colour(entry))
        axis.hlines(y, worst, best, color="black", linewidth=1.2)
        _write(axis, max(best, 1), y, f"{significant(speedup)}x  ({significant(entry['median_ms'])} ms)")
    axis.axvline(1, color="black", linewidth=0.8, zorder=0)
    _finish(axis, rows, low / 1.1, high, "x")


def _draw_memory(axis, rows):
    every = [entry["peak_bytes"] / 1e6 for _, entry in rows if entry and entry["status"] == "ok"]
    low, high = min(every) / 2, max(every)
    for y, entry in _good(axis, rows, low):
        megabytes = entry["peak_bytes"] / 1e6
        axis.barh(y, megabytes - low, left=low, height=0.75, color=_colour(entry))
        _write(axis, megabytes, y, f"{significant(megabytes)} MB")
    _finish(axis, rows, low, high, " MB")


def _good(axis, rows, x):
    """(y, entry) of what ran; writes at x what became of the others."""
    for y, (_, entry) in enumerate(rows):
        if entry and entry["status"] == "ok":
            yield y, entry
        elif entry:
            _write(axis, x, y, entry["status"], color="red")


def _colour(entry):
    return PEER if entry["peer"] else OURS


def _write(axis, x, y, text, **how):
    axis.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8, **how)


def _finish(axis, rows, low, high, unit):
    logarithmic(axis.xaxis, low, high * (high / low) ** 0.2 * 1.2, unit)  # room for the text beyond the longest bar
    axis.set_ylim(len(rows) - 0.4, -0.6)
    labelled = {y: label for y, (label, entry) in enumerate(rows) if entry is not None}
    axis.set_yticks(list(labelled), list(labelled.values()))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    beside = blended_transform_factory(axis.figure.transSubfigure, axis.transData)
    for y, (label, entry) in enumerate(rows):
        if entry is None:  # its row is free: a long one may reach into the bars' part
            how = {"fontsize": 8, "weight": "bold", "va": "center", "backgroundcolor": "white", "in_layout": False}
            axis.text(0.01, y, label, transform=beside, **how)
