"""The picture of a run: speed-ups per bench, a roofline of the matrix kernels, and the memory of training."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastseg.bench import plot_bars, plot_roofline, report

WIDTH, HEADER, TITLE, MARGIN = 10, 0.6, 0.5, 0.1  # inches
DOTS_PER_INCH = 130
MOST_DOTS = 60000  # a side: 2^16 are more than matplotlib can draw


def write_png(result, path):
    """result: with every field, as schema.filled gives it."""
    panels = [*plot_bars.speedups(result), *plot_roofline.panels(result), *plot_bars.memory(result)]
    heights = [HEADER, *(panel.inches + TITLE for panel in panels)]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    figure.set_layout_engine("constrained", w_pad=MARGIN)
    FigureCanvasAgg(figure)
    head, *parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    where = f"{report.place(result)}\n{report.versions(result['machine'])}, {result['machine']['date'][:10]}"
    head.text(MARGIN / WIDTH, 0.5, where, va="center", fontsize=10)
    for part, panel in zip(parts, panels, strict=True):
        part.suptitle(panel.title, x=MARGIN / WIDTH, ha="left", fontsize=9)
        axis = part.subplots()
        panel.draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, format="png", dpi=min(DOTS_PER_INCH, MOST_DOTS / figure.get_figheight()))
