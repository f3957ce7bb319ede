"""How uncertain a figure is by the samples that it was computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Members = Mapping[str, Tensor]
"""Positions of the samples of each set, by name."""


class Estimate(NamedTuple):
    """A figure, its standard error, and the samples of the smallest set that it was computed from."""

    value: float
    error: float
    samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """About 95 per cent: 1.96 standard errors either side."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    def known(self, within: float | None = None) -> bool:
        """Whether there are 32 samples, and the interval is no wider to either side than half the figure.

        Or than ``within``, for a figure that has a scale of its own: half of a small cosine asks too much.
        """
        tolerance = 0.5 * abs(self.value) if within is None else within
        return self.samples >= 32 and math.isfinite(self.value) and 1.96 * self.error <= tolerance


def with_error(
    figures: Callable[[Members], Mapping[str, float]], members: Members, *, repeats: int = 40, seed: int = 0
) -> dict[str, Estimate]:
    """Figures with the standard error that half samples give: the delete-half jackknife (Shao & Wu 1989).

    The spread of a figure over random halves of the samples is its standard error over all of them, for the half that
    is left out is as large as the one that is kept. Unlike a bootstrap it repeats no sample, which makes a spectrum
    steeper and halves of one set alike. Every set is halved at once, and paired sets of one size alike.

    Args:
        figures: from the members of each set.
        members: all there are; at least four each.
        repeats: random halves.
        seed: of the halves.

    Raises:
        ValueError: a set has fewer than four members.
    """
    for name, positions in members.items():
        if len(positions) < 4:
            raise ValueError(f"set {name!r} has {len(positions)} samples; expected at least 4, to be halved")
    whole = figures(members)
    generator = torch.Generator().manual_seed(seed)
    seen: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(repeats):
        halves: dict[int, Tensor] = {}
        for size in {len(positions) for positions in members.values()}:
            halves[size] = torch.randperm(size, generator=generator)[: size // 2]
        half = {name: positions[halves[len(positions)]] for name, positions in members.items()}
        for name, value in figures(half).items():
            seen[name].append(value)
    smallest = min(len(positions) for positions in members.values())
    return {name: Estimate(value, _spread(seen[name]), smallest) for name, value in whole.items()}


def _spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
