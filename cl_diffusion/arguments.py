"""Arguments that are refused before anything is trained."""

from __future__ import annotations

import math
from numbers import Integral


def is_whole(value: object, least: int) -> bool:
    """Whether it is an integer of at least so much; True and 2.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least  # type: ignore[operator]


def require_whole(least: int, **given: object) -> None:
    """Each is an integer of at least so much.

    Raises:
        ValueError: names the first that is not.
    """
    for name, value in given.items():
        if not is_whole(value, least):
            raise ValueError(f"{name}={value!r}; expected a whole number >= {least}")


def require_between(low: float, high: float, expected: str, **given: object) -> None:
    """Each is a number in ``[low, high]``; infinities and NaN are in none.

    Raises:
        ValueError: names the first that is not.
    """
    for name, value in given.items():
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not math.isfinite(number) or not low <= number <= high:
            raise ValueError(f"{name}={value!r}; expected {expected}")
