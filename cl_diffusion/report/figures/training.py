"""What was logged as training went on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_diffusion.report.figures.canvas import FAINT, ink, legend_below, marker, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = tuple[Sequence[float], Sequence[float]]
_POINTS = 200


@styled
def draw_training(panels: Mapping[str, Mapping[str, Series]], boundaries: Sequence[float] = ()) -> Figure:
    """A panel a quantity, a line a series of steps and values; means of stretches where there are more than 200 values.

    Args:
        panels: by the quantity's name, the series by title.
        boundaries: steps at which a task ended, as thin lines.
    """
    figure, every = sheet(len(panels), 3.6, 2.5)
    titles = list(dict.fromkeys(title for series in panels.values() for title in series))
    for axes, (quantity, series) in zip(every, panels.items(), strict=True):
        for step in boundaries:
            axes.axvline(step, color=FAINT, linewidth=0.7, linestyle=":")
        for title, (steps, values) in series.items():
            number = titles.index(title)
            x, y = _stretches(steps, values)
            style: Any = {"marker": marker(number), "markevery": max(1, len(x) // 6)}
            axes.plot(x, y, color=ink(number), label=title, **style)
        axes.set(title=quantity, xlabel="optimizer step")
        positive = [value for _, values in series.values() for value in values if value > 0]
        if positive and min(positive) > 0 and max(positive) > 100 * min(positive) and _all_positive(series):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    for axes in every[1:]:
        axes.sharex(every[0])
    every[0].autoscale(axis="x")
    if len(titles) > 1:
        legend_below(figure)
    return figure


def _all_positive(series: Mapping[str, Series]) -> bool:
    return all(value > 0 for _, values in series.values() for value in values)


def _stretches(steps: Sequence[float], values: Sequence[float]) -> Series:
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return [float(np.take(steps, part).mean()) for part in parts], [
        float(np.take(values, part).mean()) for part in parts
    ]
