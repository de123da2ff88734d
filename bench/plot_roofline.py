"""The roofline of the matrix kernels: what a call reaches, and what the measured copy and matrix product allow it."""

from functools import partial

from matplotlib.lines import Line2D

from fastseg.bench import reading
from fastseg.bench.plot_panel import Panel, logarithmic

INCHES = 5
MARGIN = 1.6  # a factor, around the points
KINDS = {  # how a point is drawn
    "fastest peer": {"marker": "x", "linestyle": "none"},
    "ours, effective": {"marker": "o", "linestyle": "none"},
    "ours, executed": {"marker": "^", "linestyle": "none", "markerfacecolor": "none"},
}
PEER, EFFECTIVE, EXECUTED = KINDS
TITLE = """\
matrix kernels, ours in its faster layout: rate over intensity, and what the measured ceilings allow
executed: without the products that ours leaves out; a line joins ours and the fastest peer"""


def panels(result):
    """One; none without both ceilings, or without a case that counts both bytes and flops."""
    found = {}
    for bench in result["benches"]:
        if points := [points for case in bench["cases"] if (points := _points(case))]:
            found[bench["name"]] = points
    copy, matmul = (result["ceilings"][name] for name in ("copy_gb_per_s", "matmul_tflop_per_s"))
    if not found or not copy or not matmul:
        return []
    return [Panel(TITLE, INCHES, partial(_draw, found=found, copy=copy / 1000, matmul=matmul))]


def _points(case):
    """{kind: (FLOP per byte, TFLOP/s)} of one pass of a case."""
    if not case["bytes"] or not case["flops"]:
        return {}
    points = {}
    peer, ours = (reading.fastest(reading.timed(case, peer=peer)) for peer in (True, False))
    if peer:
        points[PEER] = case["flops"] / case["bytes"], peer["tflop_per_s"]
    if ours:
        points[EFFECTIVE] = case["flops"] / case["bytes"], ours["tflop_per_s"]
    if ours and ours["executed_tflop_per_s"]:
        points[EXECUTED] = case["executed_flops"] / case["bytes"], ours["executed_tflop_per_s"]
    return points


def _draw(axis, found, copy, matmul):
    """found: {bench: [points]}; copy and matmul in TB/s and TFLOP/s."""
    every = [point for cases in found.values() for points in cases for point in points.values()]
    intensities, rates = zip(*every, (matmul / copy, matmul), strict=True)  # with the roof's corner
    left, right = min(intensities) / MARGIN, max(intensities) * MARGIN
    logarithmic(axis.xaxis, left, right)
    logarithmic(axis.yaxis, min(rates) / MARGIN, max(rates) * MARGIN)
    axis.set_xlabel("FLOP per byte", fontsize=8)
    axis.set_ylabel("TFLOP/s", fontsize=8)
    axis.plot([left, matmul / copy, right], [left * copy, matmul, matmul], color="black", linewidth=1)
    for colour, cases in enumerate(found.values()):
        for points in cases:
            joined = [points[kind] for kind in (PEER, EFFECTIVE) if kind in points]
            axis.plot(*zip(*joined, strict=True), color=f"C{colour}", linewidth=0.6)
            for kind, point in points.items():
                axis.plot(*point, color=f"C{colour}", markersize=5, **KINDS[kind])
    roof = Line2D(
        [], [], color="black", linewidth=1, label=f"copy {1000 * copy:.3g} GB/s,\nmatmul {matmul:.3g} TFLOP/s"
    )
    kinds = [Line2D([], [], color="black", markersize=5, label=kind, **style) for kind, style in KINDS.items()]
    colours = [Line2D([], [], color=f"C{colour}", linewidth=4, label=name) for colour, name in enumerate(found)]
    axis.legend(handles=[roof, *kinds, *colours], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
