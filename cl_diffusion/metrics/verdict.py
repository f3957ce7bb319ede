"""An audit in words, by rules that are stated: never more certain than the intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cl_diffusion.metrics.gradient_audit import COMPARED
from cl_diffusion.metrics.half_samples import Estimate

Figures = Mapping[str, Estimate]

HIGH, LOW = 0.8, 0.5
"""A cosine or share above ``HIGH`` with its whole interval is called high, below ``LOW`` low."""
NOISE_ALONE = 1 / 3
"""Two halves that agree at ``r`` make a whole whose share of signal is ``2 r / (1 + r)``: half, at 1/3."""


def level(figure: Estimate, high: float = HIGH, low: float = LOW) -> str | None:
    """On which side the whole interval is; None where the samples do not support the figure.

    ``"high"``, ``"low"``, ``"between"`` (all of it), ``"not low"`` or ``"not high"``; ``"unknown"`` where on both.
    """
    below, above = figure.interval
    if not figure.known(0.25):
        return None
    if below >= high:
        return "high"
    if above <= low:
        return "low"
    if below >= low:
        return "between" if above <= high else "not low"
    return "not high" if above <= high else "unknown"


def verdict(figures: Mapping[str, Figures]) -> list[str]:
    """Band by band, in words: shape, whose direction it is, mean gradient, linear model, true Fisher.

    The rules, on figures of ``GradientAudit.estimates`` and their 95 per cent intervals:

    - *shape*: ``leading_share_corrected`` high: rank one; low: not rank one;
    - *direction*: ``v_itself`` below ``NOISE_ALONE`` with its interval: the samples do not determine it; at least
      ``LOW`` with its interval: they do; else that is not known, and nothing more is said of it. Where both this and
      the other direction are determined, ``v_other_corrected`` high: task-independent; low: of this task; likewise what
      labels and data have to do with it, from ``v_relabelled_corrected`` and ``v_noise_corrected``;
    - *mean*: the same of ``mu_itself``, and where it is determined ``mu_to_v``;
    - *linear model*: where both directions are determined (``v_itself``, ``remainder_itself``):
      ``remainder_bound_cosine``, of the least bound, high: the linear denoiser's direction is bound to survive; else
      the bound and the measured angle are said;
    - *true Fisher*: its leading share against the empirical one's, where both are known and the intervals apart.
    """
    return [f"{band}: {'; '.join(said)}." for band, of in figures.items() if (said := _of_band(of))]


def _of_band(of: Figures) -> list[str]:
    parts = [_shape(of), _direction(of), _mean(of), _remainder(of), _true(of)]
    return [part for part in parts if part]


def _said(figure: Estimate, says: Mapping[str, str], of: str = "") -> str:
    """What its level is called, and the figure."""
    side = level(figure)
    return f"{says.get(side or '', says['else'])} ({_told(figure)}{of})"


def _shape(of: Figures) -> str:
    says = {
        "high": "close to rank one",
        "not low": "half or more of it in one direction",
        "between": "one direction among others",
        "not high": "not close to rank one",
        "low": "not rank one",
        "else": "too few samples to tell the rank",
    }
    return _said(of["leading_share_corrected"], says, " of the trace along one direction")


def _determined(itself: Estimate) -> bool | None:
    """Whether a direction agrees with itself; None where the samples do not say."""
    if not itself.known(0.25):
        return None
    below, above = itself.interval
    return True if below >= LOW else False if above < NOISE_ALONE else None


def _direction(of: Figures) -> str:
    itself = of["v_itself"]
    if (determined := _determined(itself)) is None:
        return f"too few samples to tell whether there is one leading direction ({_told(itself)} with itself)"
    if not determined:
        return f"these samples do not determine the leading direction (it agrees with itself at {_told(itself)})"
    said = [f"the direction agrees with itself ({_told(itself)})"]
    there = [kind for kind in COMPARED if f"v_{kind}_itself" in of and _determined(of[f"v_{kind}_itself"])]
    known = {kind: of[f"v_{kind}_corrected"] for kind in there}
    if "v_other_corrected" in of:
        says = {
            "high": "and with another task's: task-independent",
            "not low": "and at least in part with another task's",
            "between": "and in part with another task's",
            "not high": "and at most in part with another task's",
            "low": "and not with another task's: it is this task's",
            "else": "and whether with another task's cannot be told",
        }
        said.append(_said(known["other"], says) if "other" in known else says["else"])
    if {"relabelled", "other"} <= known.keys():
        same, other = known["relabelled"], known["other"]
        if same.known(0.25) and other.known(0.25) and _apart(same, other):
            effect = "differ more" if same.value > other.value else "agree more"
            says = {"high": ": under the same labels it is task-independent"}
            said.append(f"labels alone make it {effect}{says.get(level(same) or '', '')} ({_told(same)})")
    if "noise" in known:
        says = {
            "high": "pure noise, without any image, has the same direction",
            "not low": "pure noise has at least part of it",
            "between": "pure noise has part of it",
            "not high": "pure noise has at most part of it",
            "low": "pure noise has another",
            "else": "whether pure noise has it cannot be told",
        }
        said.append(_said(known["noise"], says))
    return ", ".join(said)


def _mean(of: Figures) -> str:
    itself = of["mu_itself"]
    if (determined := _determined(itself)) is None:
        return f"whether there is a mean gradient beside sampling noise cannot be told ({_told(itself)} with itself)"
    if not determined:
        return f"the mean gradient is mostly sampling noise ({_told(itself)} with itself)"
    says = {
        "high": "the mean gradient is the leading direction",
        "not low": "the mean gradient has half of the leading direction or more",
        "between": "the mean gradient has part of the leading direction",
        "not high": "the mean gradient has at most part of the leading direction",
        "low": "the mean gradient is not the leading direction",
        "else": "whether the mean gradient is the leading direction cannot be told",
    }
    return _said(of["mu_to_v"], says)


def _remainder(of: Figures) -> str:
    if "remainder_sine" not in of:
        return ""
    certain, sine, itself = of["remainder_bound_cosine"], of["remainder_sine"], of["remainder_itself"]
    if math.isnan(itself.value):
        return "a linear denoiser leaves no direction to compare"
    if not _determined(itself):
        return f"these samples do not determine a linear denoiser's direction ({_told(itself)} with itself)"
    if not _determined(of["v_itself"]):
        return f"a linear denoiser's direction agrees with itself ({_told(itself)}), and has none to be compared with"
    if level(certain) == "high":
        return f"a linear denoiser's direction is bound to survive (cosine {_told(certain)} or more)"
    none = certain.interval[0] <= 0
    bound = "no bound holds it" if none else f"bound to a cosine of {_told(certain)} or more"
    angle = f"at sine {_told(sine)}" if sine.known(0.25) else "at an angle that is not known"
    return f"a linear denoiser's direction is {angle}, {bound} (remainder {_told(of['remainder_ratio'])} of the gap)"


def _true(of: Figures) -> str:
    if "true_leading_share_corrected" not in of:
        return ""
    true, empirical = of["true_leading_share_corrected"], of["leading_share_corrected"]
    if not (true.known(0.25) and empirical.known(0.25) and _apart(true, empirical)):
        return "the true Fisher's leading share cannot be told from the empirical one's"
    word = "flatter" if true.value < empirical.value else "steeper"
    return f"the true Fisher is {word} ({_told(true)} of its trace along one direction)"


def _apart(a: Estimate, b: Estimate) -> bool:
    """Whether the intervals do not meet."""
    return a.interval[0] > b.interval[1] or b.interval[0] > a.interval[1]


def _told(figure: Estimate) -> str:
    """The figure and its interval."""
    low, high = figure.interval
    return f"{figure.value:.2g} [{low:.2g}, {high:.2g}]"
