"""The bands of timesteps that a module can be asked for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from cl_diffusion.diffusion import SNRBands


def takes_band(module: Any) -> bool:
    """Whether ``draw(batch, keys, band)`` can be asked for a band."""
    draw = getattr(module, "draw", None)
    return draw is not None and "band" in inspect.signature(draw).parameters


def audited_bands(module: Any, bands: SNRBands | None, timesteps: Sequence[int] | None) -> SNRBands | None:
    """As given, or thirds of the module's own ``noise_schedule``; None where it has none, or draws none.

    Raises:
        ValueError: bands or timesteps are given for a module whose ``draw`` takes none, or that hold none of its own.
    """
    schedule = getattr(module, "noise_schedule", None)
    if bands is None and timesteps is None:
        return SNRBands.by_quantile(schedule=schedule) if schedule is not None and takes_band(module) else None
    if not takes_band(module):
        raise ValueError(
            f"bands are asked for, and {type(module).__name__} has no `draw(batch, keys, band)` by which to draw "
            "timesteps of one; add it, or leave bands and timesteps out"
        )
    if timesteps is not None:
        if schedule is None:
            raise ValueError(f"timesteps={timesteps}, and {type(module).__name__} has no `noise_schedule`")
        return SNRBands.at_timesteps(timesteps, schedule)
    assert bands is not None
    if schedule is not None:
        for band in bands.bands:
            band.timesteps(schedule)  # refuses a band that holds none
    return bands
