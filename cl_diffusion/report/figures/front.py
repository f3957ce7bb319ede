"""What is kept against what is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cl_diffusion.report.figures.canvas import ink, legend_below, marker, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = tuple[float, "float | None"]


@styled
def draw_front(points: Mapping[str, tuple[Value, Value]], name: str) -> Figure:
    """Retention over plasticity, a point a title: each a value, and half the width of its interval if any."""
    figure, (axes,) = sheet(1, 4.4, 3.6)
    for number, (title, ((x, x_half), (y, y_half))) in enumerate(points.items()):
        style: Any = {"color": ink(number), "marker": marker(number), "markersize": 7}
        axes.errorbar(x, y, xerr=x_half, yerr=y_half, linestyle="", capsize=3, label=title, **style)
    axes.set(xlabel=f"plasticity ({name})", ylabel=f"retention ({name})")
    axes.margins(0.15)
    legend_below(figure, columns=3)
    return figure
