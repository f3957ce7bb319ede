"""Which figures of an audit its samples support: those of a direction, only where they determine it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cl_diffusion.metrics.gradient_audit import ALL, COMPARED, TRUE
from cl_diffusion.metrics.half_samples import Estimate

Figures = Mapping[str, Estimate]

DETERMINED = 0.5
"""A direction of which halves agree at this, with the whole interval, is determined."""
NOISE_ALONE = 1 / 3
"""Two halves that agree at ``r`` make a whole whose share of signal is ``2 r / (1 + r)``: half, at 1/3."""

_MAGNITUDES = ("trace", "perturbation", "gap", "loss", "output", "predicted", "rank", "empirical_to_true", "ratio")
"""Figures that have no scale of their own: known when the interval is small beside them."""


def tolerance(name: str) -> float | None:
    """How wide the interval of a figure may be to either side for it to be known; None: half of the figure itself."""
    if name.startswith("mu_with "):  # and then a band's name
        return 0.25
    magnitude = any(part in name for part in _MAGNITUDES) and "share" not in name and "correlation" not in name
    return None if magnitude else 0.25


def determined(itself: Estimate) -> bool | None:
    """Whether a direction agrees with itself; None where the samples do not say.

    Yes from ``DETERMINED`` on, no below ``NOISE_ALONE``, each with its whole interval.
    """
    if not itself.known(0.25):
        return None
    below, above = itself.interval
    return True if below >= DETERMINED else False if above < NOISE_ALONE else None


def supported(figures: Mapping[str, Figures], band: str, name: str) -> bool:
    """Whether the samples support a figure of ``GradientAudit.estimates``.

    Its interval is narrow (``Estimate.known``), and every direction that it compares is determined.
    """
    if not figures[band][name].known(tolerance(name)):
        return False
    return all(bool(determined(figures[where][itself])) for where, itself in _directions(band, name))


def direction_determined(figures: Mapping[str, Figures], direction: str) -> bool:
    """Whether the samples determine a direction of ``GradientAudit.directions``, as ``"v, low"`` or ``"mu, all"``."""
    name, _, band = direction.partition(", ")
    letter, _, kind = name.partition(" of ")
    itself = "true_itself" if kind == TRUE else f"{letter}_{kind}_itself" if kind else f"{letter}_itself"
    return bool(determined(figures[band][itself]))


def _directions(band: str, name: str) -> Iterator[tuple[str, str]]:
    """The bands and names of the split-half cosines that a figure rests on."""
    normalised = "iewc_" if name.startswith("iewc_") else ""
    plain = name.removeprefix(normalised)
    if compared := re.fullmatch(rf"(v|mu)_({'|'.join(COMPARED)})(_corrected)?", plain):
        letter, kind = compared[1], compared[2]
        yield from ((band, f"{normalised}{letter}_itself"), (band, f"{normalised}{letter}_{kind}_itself"))
    elif plain == "mu_to_v":
        yield from ((band, f"{normalised}mu_itself"), (band, f"{normalised}v_itself"))
    elif beside := re.fullmatch(r"mu_with (.+)", plain):
        yield from ((band, "mu_itself"), (beside[1], "mu_itself"))
    elif plain in ("v_to_all", "held_of_all", "mu_to_all"):
        letter = "mu" if plain == "mu_to_all" else "v"
        yield from ((band, f"{letter}_itself"), (ALL, f"{letter}_itself"))
    elif plain in ("true_to_empirical", "remainder_sine"):
        yield from ((band, "v_itself"), (band, f"{plain.partition('_')[0]}_itself"))
