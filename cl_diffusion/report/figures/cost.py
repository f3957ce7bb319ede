"""What each part of a run has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cl_diffusion.report.figures.canvas import ink, legend_below, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")


@styled
def draw_cost(seconds: Mapping[str, Mapping[str, float]]) -> Figure:
    """Stacked bars of wall time, a bar a title, a part a phase; minutes where it is long."""
    phases = list(dict.fromkeys(phase for of in seconds.values() for phase in of))
    longest = max(sum(of.values()) for of in seconds.values())
    unit, name = (60.0, "minutes") if longest > 300 else (1.0, "seconds")
    figure, (axes,) = sheet(1, 6.4, 1.2 + 0.34 * len(seconds))
    left = dict.fromkeys(seconds, 0.0)
    for number, phase in enumerate(phases):
        widths = [of.get(phase, 0.0) / unit for of in seconds.values()]
        style: Any = {"facecolor": ink(number), "hatch": _HATCHES[number % len(_HATCHES)]}
        axes.barh(range(len(seconds)), widths, left=list(left.values()), height=0.6, label=phase, linewidth=0, **style)
        left = {title: left[title] + width for title, width in zip(left, widths, strict=True)}
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.set_xlabel(f"wall time, {name}")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    legend_below(figure, columns=5)
    return figure
