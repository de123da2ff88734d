"""What the parts of the picture have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


@dataclass(frozen=True)
class Panel:
    title: str
    inches: float  # of height, without the title
    draw: Callable  # (axis) -> None


def logarithmic(side, low, high, unit=""):
    """side: axis.xaxis or axis.yaxis, from low to high."""
    getattr(side.axes, f"set_{side.axis_name}scale")("log")
    getattr(side.axes, f"set_{side.axis_name}lim")(low, high)
    subs = range(1, 10) if high < 5 * low else (1, 2, 5) if high < 500 * low else (1,)
    side.set_major_locator(LogLocator(subs=subs))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    side.set_minor_formatter(NullFormatter())
