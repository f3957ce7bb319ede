"""Figures over seeds as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None of a single value."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def interval(values: Sequence[float]) -> str:
    """The mean, plus or minus the standard error."""
    if not values:
        return ""
    mean, error = statistics.mean(values), standard_error(values)
    tiny = 1e-12 * max(1.0, *map(abs, values))  # what rounding leaves of differences that are equal
    mean = 0.0 if abs(mean) < tiny else mean
    return f"{mean:.3g}" + ("" if error is None else f" +- {0.0 if error < tiny else error:.2g}")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Rows below their head."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
