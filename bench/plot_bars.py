"""Panels of bars, a row per provider: how many times faster than the best peer, and how much memory training takes."""

from functools import partial

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastseg.bench import reading
from fastseg.bench.formats import significant
from fastseg.bench.passes import BOTH

INCHES_PER_ROW = 0.24
ROWS_AROUND = 3  # a panel's title and axis
OURS, PEER = "#1b7837", "#9aa0a6"
TRAINING = (BOTH, "training step")


def speedups(result):
    """[(inches, draw(axis))], one panel per bench. Bars start at 1x, the best peer; whiskers span 20 to 80 %."""
    found = [
        (f"{bench['title']}\nspeed-up over the best of eager and torch.compile in either layout, log scale", rows)
        for bench in result["benches"]
        if (rows := _rows(bench["cases"], "speedup"))
    ]
    return [_panel(title, rows, _draw_speedups) for title, rows in found]


def memory(result):
    """One panel of all benches: peak memory of the passes that train."""
    rows = []
    for bench in result["benches"]:
        of_bench = _rows([case for case in bench["cases"] if case["pass"] in TRAINING], "peak_bytes")
        rows += [(f"{bench['name']}: {label}" if entry is None else label, entry) for label, entry in of_bench]
    return [_panel("Peak memory of training, MB, log scale", rows, _draw_memory)] if rows else []


def _rows(cases, figure):
    """(label, entry) from top to bottom, of what ran and has that figure; entry None is a case's heading."""
    rows = []
    for case in cases:
        known = [entry for peer in (True, False) for entry in reading.timed(case, peer) if entry[figure]]
        if known:
            rows.append((f"{case['name']}, {case['detail']}", None))
            rows += [(f"{entry['provider']}, {entry['layout']}", entry) for entry in known]
    return rows


def _panel(title, rows, draw):
    return INCHES_PER_ROW * (len(rows) + ROWS_AROUND), partial(draw, title=title, rows=rows)


def _draw_speedups(axis, title, rows):
    low = high = 1.0
    for y, (_, entry) in enumerate(rows):
        if entry is None:
            continue
        speedup = entry["speedup"]
        worst, best = (speedup * entry["median_ms"] / entry[key] for key in ("p80_ms", "p20_ms"))
        low, high = min(low, worst), max(high, best)
        axis.barh(y, speedup - 1, left=1, height=0.75, color=PEER if entry["peer"] else OURS)
        axis.hlines(y, worst, best, color="black", linewidth=1.2)
        _write(axis, max(best, 1), y, f"{significant(speedup)}x  ({significant(entry['median_ms'])} ms)")
    axis.axvline(1, color="black", linewidth=0.8)
    _finish(axis, title, rows, low / 1.1, high, "x")


def _draw_memory(axis, title, rows):
    low = min(entry["peak_bytes"] for _, entry in rows if entry) / 1e6 / 2
    high = max(entry["peak_bytes"] for _, entry in rows if entry) / 1e6
    for y, (_, entry) in enumerate(rows):
        if entry is not None:
            megabytes = entry["peak_bytes"] / 1e6
            axis.barh(y, megabytes - low, left=low, height=0.75, color=PEER if entry["peer"] else OURS)
            _write(axis, megabytes, y, f"{significant(megabytes)} MB")
    _finish(axis, title, rows, low, high, "")


def _write(axis, x, y, text):
    axis.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _finish(axis, title, rows, low, high, unit):
    axis.set_xscale("log")
    axis.set_xlim(low, high * (high / low) ** 0.25 * 1.3)  # room for the text beyond the longest bar
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{unit}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    for tick, (_, entry) in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if entry is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_title(title, loc="left", fontsize=9)
