"""A metric over the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures.canvas import (
    MARKERS,
    colour,
    ink,
    legend_below,
    marker,
    sheet,
    styled,
    whole_ticks,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def draw_curves(matrices: Mapping[str, ContinualMatrix], name: str) -> Figure:
    """Each task's value from when it was learned to the end, a panel a title, on one scale."""
    figure, panels = sheet(len(matrices))
    last = max(matrix.last for matrix in matrices.values())
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        tasks = sorted({task for after, task in matrix.entries if task <= after})
        for number, task in enumerate(tasks):
            points = sorted((after, value) for (after, of), value in matrix.entries.items() if of == task <= after)
            shape = marker(number) if len(tasks) <= len(MARKERS) else "."
            axes.plot(*zip(*points, strict=True), marker=shape, color=colour(number, len(tasks)), label=f"task {task}")
        axes.set(title=wrapped(title), xlabel="after task", ylabel=name)
        whole_ticks(axes, last)
    for axes in panels[1:]:
        axes.sharey(panels[0])
    panels[0].autoscale(axis="y")
    legend_below(figure, columns=5)
    return figure


@styled
def draw_averages(matrices: Mapping[str, Sequence[ContinualMatrix]], name: str) -> Figure:
    """The average over the tasks seen so far, a line a title: the mean over its matrices, and all of them faintly."""
    figure, (axes,) = sheet(1, 4.4, 3.2)
    last = 1
    for number, (title, of) in enumerate(matrices.items()):
        every = [_averages(matrix) for matrix in of]
        shared = sorted(set.intersection(*(set(each) for each in every)))
        last = max([last, *shared])
        if len(every) > 1:
            for each in every:
                axes.plot(shared, [each[after] for after in shared], color=ink(number), alpha=0.35, linewidth=0.8)
        means = [sum(each[after] for each in every) / len(every) for after in shared]
        axes.plot(shared, means, marker=marker(number), color=ink(number), label=title)
    axes.set(xlabel="after task", ylabel=f"average {name}")
    whole_ticks(axes, last)
    legend_below(figure, columns=3)
    return figure


def _averages(matrix: ContinualMatrix) -> dict[int, float]:
    """By the number of tasks learned, over those of them that were measured."""
    seen: dict[int, list[float]] = {}
    for (after, task), value in matrix.entries.items():
        if task <= after:
            seen.setdefault(after, []).append(value)
    return {after: sum(values) / len(values) for after, values in seen.items()}
