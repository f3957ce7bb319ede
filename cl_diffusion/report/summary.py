"""The table of a comparison: one row a method, one column a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.comparison import Comparison, Method
from cl_diffusion.report.seeds import mean_and_half_width, told

NAMES = {
    "class_agreement": "class agreement",
    "frechet_distance": "Frechet distance",
    "inception_distance": "FID",
    "denoising_loss": "denoising loss",
}
ABOUT = {
    "class_agreement": "share of generated images that the reference classifier takes for the class that was asked for",
    "frechet_distance": "to held-out images, in the features of the reference classifier: not FID",
    "inception_distance": "Frechet distance to held-out images, in Inception features",
    "denoising_loss": "on held-out images, with the same draws of timestep and noise every time",
}
FIGURES: dict[str, tuple[str, Callable[[ContinualMatrix], float]]] = {
    "average": ("over all tasks, at the end", ContinualMatrix.average),
    "forgetting": (
        "how much worse tasks have become since they were learned, averaged over all; positive is worse",
        ContinualMatrix.forgetting,
    ),
    "backward transfer": (
        "how much better the tasks before the last have become since they were learned; negative is forgetting",
        ContinualMatrix.backward_transfer,
    ),
    "retention": ("the tasks before the last, at the end", ContinualMatrix.retention),
    "plasticity": ("each task after the first, when it was learned", ContinualMatrix.plasticity),
}


@dataclass(frozen=True)
class Column:
    """A figure of a metric: its cells by method, as text and as the number that it sorts by."""

    metric: str
    figure: str
    better: str
    cells: Sequence[tuple[str, float]]

    @property
    def of_metric(self) -> str:
        """What the metric is; empty of one that is not known here."""
        return ABOUT.get(self.metric, "")

    @property
    def what(self) -> str:
        """What the figure is, of any metric."""
        return FIGURES[self.figure][0]

    @property
    def about(self) -> str:
        """All in a sentence, and which way is better."""
        first = f"{self.of_metric}; {self.what}" if self.of_metric else self.what
        return f"{first_capital(first)}. {first_capital(self.better)} is better."


def named(metric: str) -> str:
    """A metric's name to read: ``denoising loss, low``."""
    first, _, band = metric.partition("/")
    return NAMES.get(first, first.replace("_", " ")) + (f", {band}" if band else "")


def first_capital(text: str) -> str:
    """The text with a capital at its start, the rest as it is."""
    return text[:1].upper() + text[1:]


def summary(comparison: Comparison) -> list[Column]:
    """Every figure of every metric that is not of one band."""
    metrics = [metric for metric in comparison.metrics if "/" not in metric]
    return [_column(comparison, metric, figure) for metric in metrics for figure in FIGURES]


def values(method: Method, metric: str, figure: str) -> list[float]:
    """On each seed; empty where a run has not measured it."""
    _, compute = FIGURES[figure]
    return [compute(matrix) for matrix in method.matrices(metric)]


def _column(comparison: Comparison, metric: str, figure: str) -> Column:
    cells = []
    for method in comparison.methods:
        every = values(method, metric, figure)
        mean, half = mean_and_half_width(every) if every else (math.nan, None)
        cells.append((told(mean, half), mean))
    higher = next(run.matrices[metric].higher_is_better for run in comparison.runs if metric in run.matrices)
    better = {"forgetting": "lower", "backward transfer": "higher"}.get(figure, "higher" if higher else "lower")
    return Column(metric, figure, better, cells)
