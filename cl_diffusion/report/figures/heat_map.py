"""The matrix of a metric, after each task on each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures.canvas import sheet, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 10
"""So many tasks at most, and every cell has its number."""
_POINTS_ACROSS = 125
"""Of a panel's cells together."""


@styled
def draw_matrices(matrices: Mapping[str, ContinualMatrix], name: str) -> Figure:
    """Heat maps ``R[after, task]`` of one metric beside each other, on one scale; brighter is better.

    Args:
        matrices: by title.
        name: of the metric, to read.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    some = next(iter(matrices.values()))
    every = [value for matrix in matrices.values() for value in matrix.entries.values() if np.isfinite(value)]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    shades = ScalarMappable(
        Normalize(low, high if high > low else low + 1), "cividis" if some.higher_is_better else "cividis_r"
    )
    figure, panels = sheet(len(matrices), 3.1, 3.0)
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        _draw(axes, matrix, shades)
        axes.set(title=wrapped(title), xlabel="task", ylabel="after task")
    figure.colorbar(shades, ax=list(panels), label=name, shrink=0.8, aspect=30)
    return figure


def _draw(axes: Any, matrix: ContinualMatrix, shades: Any) -> None:
    last = max(max(entry) for entry in matrix.entries)
    values = np.full((last, last), np.nan)
    for (after, task), value in matrix.entries.items():
        values[after - 1, task - 1] = value
    edges = np.arange(last + 1) + 0.5
    axes.grid(visible=False)
    axes.pcolormesh(edges, edges, np.ma.masked_invalid(values), cmap=shades.cmap, norm=shades.norm)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    ticks = range(1, last + 1, max(1, last // 10))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if last > _WRITTEN:
        return
    longest = max((len(f"{value:.3g}") for value in matrix.entries.values()), default=1)
    size = min(8.5, _POINTS_ACROSS / last / (0.62 * longest))
    for (after, task), value in matrix.entries.items():
        if np.isfinite(value):
            red, green, blue, _ = shades.to_rgba(value)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            style = {"ha": "center", "va": "center", "fontsize": size}
            axes.text(task, after, f"{value:.3g}", color="#ffffff" if dark else "#000000", **style)
