"""The roofline of the matrix kernels: what a call reaches, and what the measured copy and matrix product allow it."""

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastseg.bench import reading

INCHES = 5.5
MARGIN = 1.6  # a factor, on each side of the points
KINDS = {  # how a point is drawn
    "fastest peer": {"marker": "x", "linestyle": "none"},
    "ours, effective": {"marker": "o", "linestyle": "none"},
    "ours, executed": {"marker": "^", "linestyle": "none", "markerfacecolor": "none"},
}
PEER, EFFECTIVE, EXECUTED = KINDS
TITLE = (
    "Matrix kernels: rate over intensity, and what the measured ceilings allow. A line joins ours and the fastest peer."
)


def panels(result):
    """[(inches, draw(axis))]; none without both ceilings, or without a case that counts both bytes and flops."""
    found = {}
    for bench in result["benches"]:
        if points := [points for case in bench["cases"] if (points := _points(case))]:
            found[bench["name"]] = points
    copy, matmul = (result["ceilings"][name] for name in ("copy_gb_per_s", "matmul_tflop_per_s"))
    return [(INCHES, lambda axis: _draw(axis, found, copy / 1000, matmul))] if found and copy and matmul else []


def _points(case):
    """{kind: (FLOP per byte, TFLOP/s)} of one pass of a case; ours in its faster layout."""
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
    ridge = matmul / copy
    intensities = [ridge, *(x for cases in found.values() for points in cases for x, _ in points.values())]
    left, right = min(intensities) / MARGIN, max(intensities) * MARGIN
    axis.plot([left, ridge, right], [left * copy, matmul, matmul], color="black", linewidth=1)
    for colour, cases in enumerate(found.values()):
        for points in cases:
            joined = [points[kind] for kind in (PEER, EFFECTIVE) if kind in points]
            axis.plot(*zip(*joined, strict=True), color=f"C{colour}", linewidth=0.6)
            for kind, (x, y) in points.items():
                axis.plot(x, y, color=f"C{colour}", markersize=5, **KINDS[kind])
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(left, right)
    for side, unit in ((axis.xaxis, "FLOP per byte"), (axis.yaxis, "TFLOP/s")):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        side.set_minor_formatter(NullFormatter())
        side.set_label_text(unit, fontsize=8)
    axis.tick_params(labelsize=8)
    roof = Line2D([], [], color="black", linewidth=1, label=f"copy {1000 * copy:.3g} GB/s, matmul {matmul:.3g} TFLOP/s")
    colours = [Line2D([], [], color=f"C{colour}", linewidth=4, label=name) for colour, name in enumerate(found)]
    kinds = [Line2D([], [], color="black", markersize=5, label=kind, **style) for kind, style in KINDS.items()]
    axis.legend(handles=[roof, *kinds, *colours], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.set_title(TITLE, loc="left", fontsize=9)
