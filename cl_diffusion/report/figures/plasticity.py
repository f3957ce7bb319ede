"""Whether a network still learns, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_diffusion.report.figures.canvas import SERIES, ink, legend_below, marker, sheet, styled, whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[int, str, str, float]
NAMES = {
    "dead": "share of units that never fire",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "weight_norm": "root mean square of weights",
    "update_norm": "root mean square of the last step",
}


@styled
def draw_plasticity(rows: Mapping[str, Sequence[Row]]) -> Figure:
    """A panel a figure of ``plasticity.csv`` over the tasks, a line a title: the mean over layers."""
    figures = list(dict.fromkeys(figure for every in rows.values() for _, _, figure, _ in every))
    sheet_, panels = sheet(len(figures), 3.6, 2.5)
    last = max(task for every in rows.values() for task, *_ in every)
    for axes, figure in zip(panels, figures, strict=True):
        for number, (title, every) in enumerate(rows.items()):
            means = _means(every, figure)
            if means:
                style: Any = {"color": ink(number), "marker": marker(number)}
                axes.plot(list(means), list(means.values()), label=title, markevery=max(1, len(means) // 8), **style)
        axes.set(title=NAMES.get(figure, figure.replace("_", " ")), xlabel="task")
        whole_ticks(axes, last)
    if len(rows) > 1:
        legend_below(sheet_)
    return sheet_


def by_layer(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """The rows of each layer, ``module`` being the whole; of more than eight layers, all rows under one title."""
    layers = list(dict.fromkeys(layer for _, layer, _, _ in rows))
    if len(layers) > len(SERIES):
        return {f"mean of {len(layers)} layers": rows}
    return {layer or "module": [row for row in rows if row[1] == layer] for layer in layers}


def _means(rows: Sequence[Row], figure: str) -> dict[int, float]:
    """By task, over the layers in which the figure is a number."""
    found: dict[int, list[float]] = {}
    for task, _, name, value in rows:
        if name == figure and value == value:
            found.setdefault(task, []).append(value)
    return {task: sum(values) / len(values) for task, values in sorted(found.items())}
