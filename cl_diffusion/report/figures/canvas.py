"""The sheet that every figure is drawn on, and its inks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#26282b", "#8f959c"
SERIES = ("#0b62a4", "#b54708", "#0f7b4f", "#a3267e", "#6b5b00", "#5b4bb7", "#0c7c86", "#8a3b3b")
"""Told apart by people who see few colours, by their markers besides; a page replaces them by its own."""
MARKERS = "osD^vPX*"
_LETTERS, _LINES = 13, 5.5
"""Of a legend, an inch across and an inch down."""
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": "#ffffff",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "cl_diffusion",
}
Given = ParamSpec("Given")


def styled(draw: Callable[Given, Any]) -> Callable[Given, Any]:
    """A function that draws, in the house's style whatever the user's own is; ``$`` in a name is a dollar."""

    @wraps(draw)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Any:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return drawn


def sheet(panels: int, width: float = 3.6, height: float = 2.8, columns: int = 3) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many panels, at most ``columns`` beside each other, inches a panel."""
    from matplotlib.figure import Figure

    across = min(panels, columns)
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    every = [figure.add_subplot(down, across, number + 1) for number in range(panels)]
    return figure, every


def ink(number: int) -> str:
    """Of one of several things without an order; they begin anew after eight, with other markers (``marker``)."""
    return SERIES[number % len(SERIES)]


def marker(number: int) -> str:
    """Beside ``ink``: no two of the first 64 have both in common."""
    return MARKERS[(number + number // len(SERIES)) % len(MARKERS)]


def colour(number: int, of: int) -> Any:
    """Of what has an order: an ink where there are enough, else a step along a map legible on light and dark."""
    if of <= len(SERIES):
        return SERIES[number % len(SERIES)]
    import matplotlib

    return matplotlib.colormaps["plasma"](0.15 + 0.6 * number / max(1, of - 1))


def wrapped(title: str, letters: int = 32) -> str:
    """A panel's title, in lines that keep within the panel."""
    return "\n".join(textwrap.wrap(title, letters)) or title


def whole_ticks(axes: Axes, last: int) -> None:
    """Ticks of the horizontal axis at tasks 1 to the last, not more than ten."""
    step = max(1, math.ceil(last / 10))
    axes.set_xticks([1, *range(step if step > 1 else 2, last + 1, step)])


def legend_below(figure: Figure, columns: int = 4) -> None:
    """One legend for all panels, each name once; fewer columns where names are long, a longer sheet for its lines."""
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if not named:
        return
    fitting = int(_LETTERS * figure.get_figwidth() / (max(map(len, named)) + 6))
    across = max(1, min(columns, len(named), fitting))
    figure.set_figheight(figure.get_figheight() + math.ceil(len(named) / across) / _LINES)
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=across)
