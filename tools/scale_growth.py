"""How a figure grows with one variable: a power law, or a constant and a slope, whichever is nearer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Power:
    """``y = coefficient * x ** exponent``."""

    coefficient: float
    exponent: float

    def __call__(self, x: float) -> float:
        """The figure at ``x``."""
        return float(self.coefficient * x**self.exponent)

    def __str__(self) -> str:
        return f"{self.coefficient:.3g} x^{self.exponent:.2f}"


@dataclass(frozen=True)
class Affine:
    """``y = constant + slope * x``."""

    constant: float
    slope: float

    def __call__(self, x: float) -> float:
        """The figure at ``x``."""
        return self.constant + self.slope * x

    def __str__(self) -> str:
        sign = "-" if self.slope < 0 else "+"
        return f"{self.constant:.3g} {sign} {abs(self.slope):.3g} x"


Law = Power | Affine


def power_law(points: Points) -> Power:
    """By least squares of ``log y`` on ``log x``.

    Raises:
        ValueError: fewer than two different ``x``, or a number that is not positive.
    """
    _require(points)
    x, y = (np.log(np.array(values, dtype=float)) for values in zip(*points, strict=True))
    centred = x - x.mean()
    exponent = float(centred @ (y - y.mean()) / (centred @ centred))
    return Power(float(np.exp(y.mean() - exponent * x.mean())), exponent)


def affine(points: Points) -> Affine:
    """By least squares of the relative error, so that small and large figures count alike.

    Raises:
        ValueError: fewer than two different ``x``, or a number that is not positive.
    """
    _require(points)
    x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    constant, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)[0]
    rounding = 1e-9 * float(y.min())
    return Affine(
        *(float(part) if abs(part) * to > rounding else 0.0 for part, to in ((constant, 1), (slope, x.max())))
    )


def residual(law: Law, points: Points) -> float:
    """Root mean square of ``log(y / law(x))``: .1 is 10 per cent; infinite where the law is not positive."""
    found = [law(x) for x, _ in points]
    if min(found) <= 0:
        return math.inf
    return math.sqrt(sum(math.log(y / at) ** 2 for (_, y), at in zip(points, found, strict=True)) / len(points))


@dataclass(frozen=True)
class Growth:
    """What was measured of a part while one variable grew and all others stood.

    Args:
        part: of the framework.
        quantity: with its unit, such as ``"seconds"``.
        across: the variable.
        points: ``(x, y)``, all positive.
    """

    part: str
    quantity: str
    across: str
    points: tuple[tuple[float, float], ...]

    @property
    def power(self) -> Power:
        """The power law alone; its exponent says how fast it grows, whatever constant there is."""
        return power_law(self.points)

    @property
    def law(self) -> Law:
        """The nearer of the two; of two points, which either fits, the affine one."""
        laws: list[Law] = [affine(self.points), self.power]
        errors = [residual(law, self.points) for law in laws]
        return laws[1] if errors[1] < errors[0] - 1e-9 else laws[0]

    def row(self) -> list[str]:
        """Part, quantity, variable, its range, exponent and residual of the power law, the nearer law and its own."""
        low, high = min(x for x, _ in self.points), max(x for x, _ in self.points)
        return [
            self.part,
            self.quantity,
            self.across,
            f"{low:.3g} .. {high:.3g}",
            f"{self.power.exponent:.2f} ({residual(self.power, self.points):.0%})",
            f"{self.law} ({residual(self.law, self.points):.0%})",
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        power = {**asdict(self.power), "residual": residual(self.power, self.points)}
        line = affine(self.points)
        return {**asdict(self), "power": power, "affine": {**asdict(line), "residual": residual(line, self.points)}}


def _require(points: Points) -> None:
    if len({x for x, _ in points}) < 2 or any(not 0 < value < math.inf for point in points for value in point):
        raise ValueError(f"points={list(points)!r}; expected positive numbers, at two different x at least")
