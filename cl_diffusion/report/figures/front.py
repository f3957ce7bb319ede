"""What is kept against what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cl_diffusion.report.figures.canvas import ink, legend_below, marker, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = tuple[float, "float | None"]


class Point(NamedTuple):
    """What a method has learned and kept: each a value, and half the width of its interval if any.

    Attributes:
        across: what it has learned.
        up: what it has kept.
        beside: is written at the point, as the strength that it was measured at.
    """

    across: Value
    up: Value
    beside: str = ""


@styled
def draw_front(methods: Mapping[str, Sequence[Point]], across: str, up: str) -> Figure:
    """What is kept over what is learned; the points of a method are joined by a line, in their order.

    Args:
        methods: by title, one point or several.
        across: what the horizontal axis says.
        up: what the vertical axis says.
    """
    figure, (axes,) = sheet(1, 4.4, 3.6)
    for number, (title, points) in enumerate(methods.items()):
        style: Any = {"color": ink(number), "marker": marker(number), "markersize": 7, "capsize": 3}
        for place, ((x, x_half), (y, y_half), beside) in enumerate(points):
            label = None if place else title
            axes.errorbar(x, y, xerr=x_half, yerr=y_half, linestyle="", label=label, **style)
            if beside:
                aside = (6, 6 if number % 2 else -12)  # of two methods in one place, one above and one below
                axes.annotate(beside, (x, y), aside, textcoords="offset points", fontsize=8, color=ink(number))
        if len(points) > 1:
            axes.plot([point.across[0] for point in points], [point.up[0] for point in points], color=ink(number))
    axes.set(xlabel=across, ylabel=up)
    axes.margins(0.15)
    legend_below(figure, columns=3)
    return figure
