"""The picture of a run: how many times faster than the best peer, per case and provider."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastseg.bench.formats import significant

INCHES_PER_ROW = 0.24
OURS, PEER = "#1b7837", "#9aa0a6"


def write_png(result, path):
    """One panel per bench. Bars start at 1x, the best peer; right is faster. Whiskers span 20 to 80 %."""
    panels = [rows for rows in map(_rows, result["benches"]) if rows]
    heights = [len(rows) + 3 for rows in panels] or [4]  # rows for the panel's title and axis
    figure = Figure(figsize=(10, INCHES_PER_ROW * sum(heights) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    said = result["machine"]
    figure.suptitle(
        f"Speed-up over the best of eager and torch.compile in either layout (log scale)\n"
        f"{said['device']}, {result['dtype']}, torch {said['torch']}, "
        f"fastseg {said['commit'] or said['fastseg']}",
        fontsize=10,
    )
    if panels:
        titles = [bench["title"] for bench in result["benches"] if _rows(bench)]
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, rows, title in zip(axes, panels, titles, strict=True):
            _panel(axis, rows, title)
    figure.savefig(path, format="png", dpi=130)


def _rows(bench):
    """(label, entry, best peer's median) from top to bottom; entry None is a case's heading."""
    rows = []
    for case in bench["cases"]:
        timed = [entry for entry in case["providers"] if entry["status"] == "ok" and entry["speedup"]]
        if timed:
            rows.append((f"{case['name']}, {case['detail']}", None))
            rows += [(f"{entry['provider']}, {entry['layout']}", entry) for entry in timed]
    return rows


def _panel(axis, rows, title):
    low, high = 1.0, 1.0
    for y, (_, entry) in enumerate(rows):
        if entry is None:
            continue
        speedup = entry["speedup"]
        worst, best = (speedup * entry["median_ms"] / entry[key] for key in ("p80_ms", "p20_ms"))
        low, high = min(low, worst), max(high, best)
        axis.barh(y, speedup - 1, left=1, height=0.75, color=PEER if entry["peer"] else OURS)
        axis.hlines(y, worst, best, color="black", linewidth=1.2)
        text = f"{significant(speedup)}x  ({significant(entry['median_ms'])} ms)"
        axis.annotate(text, (max(best, 1), y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(low / 1.1, high * (high / low) ** 0.25 * 1.3)  # room for the text beyond the longest bar
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    for tick, (_, entry) in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if entry is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=9)
