"""Bands of the signal-to-noise ratio: groups of timesteps that mean the same on every schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.bands import Bands
from cl_diffusion.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class SNRBand:
    """The timesteps whose log-snr, ``log(abar_t / (1 - abar_t))``, lies in ``[low, high)``.

    Natural logarithm of the ratio of *powers*. (Wang et al., 2509.23593, write SNR for ``sqrt(abar) / (1 - abar)``.)

    Args:
        name: what tables and logs call the band.
        low: lower end, included.
        high: upper end, excluded.

    Raises:
        ValueError: ``low`` is not less than ``high``.

    Example:
        >>> from cl_diffusion.diffusion import NoiseSchedule
        >>> band = SNRBand("mid", low=-1.0, high=1.0)
        >>> band.timesteps(NoiseSchedule([0.9, 0.5, 0.4, 0.1]))
        tensor([1, 2])
    """

    name: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"band {self.name!r}: low={self.low} must be less than high={self.high} (log-snr).")

    def contains(self, log_snr: Tensor) -> Tensor:
        """Elementwise membership: bool, of the shape of ``log_snr``."""
        return (log_snr >= self.low) & (log_snr < self.high)

    def timesteps(self, schedule: NoiseSchedule) -> Tensor:
        """The band's timesteps, ascending: int64 ``(K,)`` on the schedule's device, K >= 1. They are consecutive.

        Raises:
            ValueError: the schedule has no timestep in the band.
        """
        timesteps = self.contains(schedule.log_snr).nonzero().squeeze(1)
        if len(timesteps) == 0:
            lowest, highest = schedule.log_snr[-1].item(), schedule.log_snr[0].item()
            raise ValueError(
                f"band {self.name!r} = [{self.low}, {self.high}) holds none of the schedule's {schedule.num_steps} "
                f"timesteps, whose log-snr runs from {lowest:.4g} to {highest:.4g}: choose one that meets that range."
            )
        return timesteps


class SNRBands(Bands):
    """The band of each sample of a drawn batch: what a banded Fisher is banded by.

    Args:
        bands: from the lowest log-snr (most noise) to the highest, not overlapping; log-snr between two of them is in
            no band.

    Raises:
        ValueError: there is no band, two have one name, or they overlap.
    """

    def __init__(self, bands: Sequence[SNRBand]) -> None:
        names = [band.name for band in bands]
        if not bands or len(set(names)) < len(names) or any(a.high > b.low for a, b in pairwise(bands)):
            raise ValueError(
                f"bands={tuple(bands)}: expected bands of different names, ascending and not overlapping in log-snr."
            )
        self.bands = tuple(bands)

    @classmethod
    def by_quantile(
        cls,
        quantiles: Sequence[float] = (1 / 3, 2 / 3),
        names: Sequence[str] = ("low", "mid", "high"),
        schedule: NoiseSchedule | None = None,
    ) -> SNRBands:
        """``quantile_bands`` of a schedule, by default thirds of the linear one of 1000 steps."""
        return cls(quantile_bands(schedule or NoiseSchedule.linear(), quantiles, names))

    @classmethod
    def at_timesteps(cls, timesteps: Sequence[int], schedule: NoiseSchedule) -> SNRBands:
        """A band of one timestep each, ``t = 100``, of a schedule.

        Raises:
            ValueError: timesteps are repeated, or not of the schedule.
        """
        log_snr = schedule.log_snr.tolist()
        if len(set(timesteps)) < len(timesteps) or not all(is_whole(t, 0) and t < len(log_snr) for t in timesteps):
            raise ValueError(f"timesteps={list(timesteps)}: expected different ones, from 0 to {len(log_snr) - 1}.")
        edges = [math.inf, *((a + b) / 2 for a, b in pairwise(log_snr)), -math.inf]
        return cls([SNRBand(f"t = {t}", edges[t + 1], edges[t]) for t in sorted(timesteps, reverse=True)])

    @property
    @override
    def names(self) -> tuple[str, ...]:
        """One name a band."""
        return tuple(band.name for band in self.bands)

    @override
    def __call__(self, batch: Any) -> Tensor:
        """The position of each sample's band: int64 ``(B,)``; -1 is in none.

        Raises:
            ValueError: the batch does not tell its samples' log-snr, as a ``DrawnBatch`` does.
        """
        log_snr = getattr(batch, "log_snr", None)
        if not isinstance(log_snr, Tensor):
            raise ValueError(f"batch={type(batch).__name__}: expected a drawn batch with the `log_snr` of each sample.")
        position = torch.full_like(log_snr, -1, dtype=torch.int64)
        for number, band in enumerate(self.bands):
            position = position.masked_fill(band.contains(log_snr), number)
        return position

    @override
    def describe(self) -> str:
        """Names and edges, equal where bands are."""
        return ", ".join(f"{band.name} [{band.low:g}, {band.high:g})" for band in self.bands)


def quantile_bands(
    schedule: NoiseSchedule,
    quantiles: Sequence[float] = (1 / 3, 2 / 3),
    names: Sequence[str] = ("low", "mid", "high"),
) -> tuple[SNRBand, ...]:
    """Cut the timesteps at quantiles of their log-snr, every timestep having the same weight.

    The bands partition the timesteps, the outer two are unbounded, and each edge lies midway between two timesteps, so
    that rounding of log-snr moves none across it.

    Args:
        schedule: whose timesteps to cut.
        quantiles: strictly increasing, within (0, 1): the share of timesteps below each edge.
        names: one name a band, from the lowest log-snr (most noise) to the highest; one more than quantiles.

    Raises:
        ValueError: names are repeated or of the wrong number, or a band would hold no timestep.
    """
    if len(names) != len(quantiles) + 1 or len(set(names)) != len(names):
        raise ValueError(
            f"names={tuple(names)}: expected {len(quantiles) + 1} distinct names, one more than quantiles."
        )
    if not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles={tuple(quantiles)}: expected increasing fractions within (0, 1).")
    cuts = [0, *(round(q * schedule.num_steps) for q in quantiles), schedule.num_steps]
    if any(low >= high for low, high in pairwise(cuts)):
        raise ValueError(
            f"quantiles={tuple(quantiles)} cut {schedule.num_steps} timesteps at {cuts[1:-1]}: expected increasing "
            "fractions within (0, 1) that leave at least one timestep to each band; use fewer quantiles."
        )
    ascending = torch.sort(schedule.log_snr).values.tolist()
    inner = [(ascending[cut - 1] + ascending[cut]) / 2 for cut in cuts[1:-1]]
    edges = [-math.inf, *inner, math.inf]
    return tuple(SNRBand(name, low, high) for name, (low, high) in zip(names, pairwise(edges), strict=True))
