"""A figure over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of independent values, and half the width of its 95 per cent interval.

    ``t_{.975, n-1} s / sqrt(n)``, Student's, with ``s`` the standard deviation over ``n - 1``; None of a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    return mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def told(mean: float, half_width: float | None = None) -> str:
    """The mean in three digits; with an interval, that in two and the mean to the same place: ``.470 ± .031``."""
    if math.isnan(mean):
        return "–"
    if half_width is None or not 1e-6 < half_width < math.inf:
        return plain(mean, 3) + ("" if half_width is None else f" ± {plain(half_width, 2)}")
    places = max(0, 1 - math.floor(math.log10(half_width)))
    return f"{round(mean, places) + 0.0:.{places}f} ± {half_width:.{places}f}"


def plain(value: float, digits: int) -> str:
    """Without a power of ten where the number is large, and without what rounding leaves of zero."""
    if abs(value) < 1e-12:
        return "0"
    said = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in said and abs(value) < 1e7 else said
