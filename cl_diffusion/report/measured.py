"""The parts of a page that are of ``continual.csv``: matrices, curves and the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.comparison import Comparison
from cl_diffusion.report.figures import Point, draw_averages, draw_curves, draw_front, draw_matrices
from cl_diffusion.report.seeds import mean_and_half_width, told
from cl_diffusion.report.summary import ABOUT, first_capital, named, values
from cl_diffusion.report.svg import Drawings


@dataclass(frozen=True)
class Measured:
    """One metric: pictures, and its matrices as numbers; ``banded``: of one band alone."""

    name: str
    banded: bool
    about: str
    matrices: Markup
    curves: Markup
    averages: Markup | None
    numbers: Sequence[tuple[str, Sequence[Sequence[str]]]]


def measured(comparison: Comparison, drawings: Drawings) -> list[Measured]:
    """Every metric that a method has measured on all of its seeds."""
    return [of for metric in comparison.metrics if (of := _measured(comparison, metric, drawings)) is not None]


def front(comparison: Comparison, drawings: Drawings) -> tuple[str, Markup] | None:
    """Retention against plasticity of two methods or more, in class agreement or, without that, in the loss."""
    for metric in ("class_agreement", "denoising_loss"):
        points = {}
        for method in comparison.methods:
            both = values(method, metric, "plasticity"), values(method, metric, "retention")
            if all(both):
                points[method.said] = Point(mean_and_half_width(both[0]), mean_and_half_width(both[1]))
        if len(points) > 1:
            name = named(metric)
            drawn = draw_front(
                {label: [point] for label, point in points.items()}, f"plasticity ({name})", f"retention ({name})"
            )
            told_points = "; ".join(f"{label}: {told(*x)} and {told(*y)}" for label, (x, y, _) in points.items())
            return name, drawings.svg(drawn, f"Plasticity and retention. {told_points}")
    return None


def _measured(comparison: Comparison, metric: str, drawings: Drawings) -> Measured | None:
    found = {method.said: matrix for method in comparison.methods if (matrix := method.matrix(metric)) is not None}
    if not found:
        return None
    name = named(metric)
    averages = None
    if len(found) > 1:
        every = {method.said: method.matrices(metric) for method in comparison.methods}
        kept = {label: every[label] for label in found}
        averages = drawings.svg(draw_averages(kept, name), f"Average {name} over the stream. {_said(found)}")
    about = ABOUT.get(metric.partition("/")[0], "")
    return Measured(
        name,
        "/" in metric,
        about + (f", samples of the band {metric.partition('/')[2]} alone" if "/" in metric else ""),
        drawings.svg(draw_matrices(found, name), f"Heat maps of {name}, after each task on each task. {_said(found)}"),
        drawings.svg(draw_curves(found, name), f"{first_capital(name)} of each task over the stream. {_said(found)}"),
        averages,
        [(label, _table(matrix)) for label, matrix in found.items()],
    )


def _said(matrices: Mapping[str, ContinualMatrix]) -> str:
    """The averages at the end, and the forgetting: what the picture is to show."""
    return "; ".join(
        f"{label}: {told(matrix.average())} over all after task {matrix.last}, forgetting {told(matrix.forgetting())}"
        for label, matrix in matrices.items()
    )


def _table(matrix: ContinualMatrix) -> list[list[str]]:
    """A row a number of tasks learned, a cell a task; empty where nothing was measured."""
    last = max(max(entry) for entry in matrix.entries)
    rows = sorted({after for after, _ in matrix.entries})
    cells = range(1, last + 1)
    return [[str(a), *(told(matrix.entries[a, t]) if (a, t) in matrix.entries else "" for t in cells)] for a in rows]
