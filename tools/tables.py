"""Figures over seeds as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from cl_diffusion.report import seeds


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None of a single value."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def told(value: float, error: float | None) -> str:
    """The value, plus or minus its standard error, in the digits that a report has."""
    return seeds.told(value, error).replace("±", "+-")


def interval(values: Sequence[float]) -> str:
    """The mean, plus or minus the standard error."""
    if not values:
        return ""
    mean, error = statistics.mean(values), standard_error(values)
    tiny = 1e-12 * max(1.0, *map(abs, values))  # what rounding leaves of differences that are equal
    mean = 0.0 if abs(mean) < tiny else mean
    return told(mean, None if error is None else 0.0 if error < tiny else error)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Rows below their head."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
