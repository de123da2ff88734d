"""The picture of a run: speed-ups per bench, a roofline of the matrix kernels, and the memory of training."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastseg.bench import plot_bars, plot_roofline, report

DOTS_PER_INCH = 130
MOST_DOTS = 60000  # a side; a PNG of 2^16 is more than matplotlib can draw


def write_png(result, path):
    """result: with every field, as schema.filled gives it."""
    panels = [*plot_bars.speedups(result), *plot_roofline.panels(result), *plot_bars.memory(result)]
    heights = [inches for inches, _ in panels] or [1]
    figure = Figure(figsize=(10, sum(heights) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{report.place(result)}\n{report.versions(result['machine'])}", fontsize=10)
    if panels:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, (_, draw) in zip(axes, panels, strict=True):
            draw(axis)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=min(DOTS_PER_INCH, MOST_DOTS / figure.get_figheight()))
