"""An audit in words, by rules that are stated: never more certain than the intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cl_diffusion.metrics.gradient_audit import ALL, COMPARED
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.metrics.support import Figures, determined

HIGH, LOW = 0.8, 0.5
"""A cosine or share above ``HIGH`` with its whole interval is called high, below ``LOW`` low."""


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

    - *shape*: ``leading_share_held_out``, which is too small in the mean, high: rank one; ``leading_share``, which is
      too large, low: not rank one;
    - *direction*: ``v_itself`` says whether the samples determine it (``support.determined``); where they do not, or
      that is not known, nothing more is said of it. Where both this and the other direction are determined,
      ``v_other_corrected`` high: task-independent; low: of this task; likewise what labels and data have to do with
      it, from ``v_relabelled_corrected`` and ``v_noise_corrected``;
    - *mean*: the same of ``mu_itself``, and where both it and ``v`` are determined ``mu_to_v``;
    - *linear model*: where both directions are determined (``v_itself``, ``remainder_itself``):
      ``remainder_bound_cosine``, of the least bound, high: the linear denoiser's direction is bound to survive; else
      the bound and the measured angle are said;
    - *true Fisher*: its leading share against the empirical one's, where both are known and the intervals apart.
    """
    return [f"{band}: {'; '.join(said)}." for band, of in figures.items() if (said := _of_band(of))]


def verdict_of_steps(preservation: Mapping[str, Figures]) -> list[str]:
    """Whether each Fisher keeps its word of the shortest and the longest steps, by band.

    From ``loss/ratio`` and ``each_loss/ratio`` of ``Preservation.estimates``: with its whole interval from .8 to 1.25
    it keeps its word, above it says too little, below too much.
    """
    said = []
    for band, of in preservation.items():
        radii = sorted({name.rpartition("/")[2] for name in of if name.startswith("each_loss/ratio/")}, key=float)
        steps = []
        for radius in dict.fromkeys((*radii[:1], *radii[-1:])):
            claims = [
                f"{whose} {_kept(of[name])} ({_told(of[name])})"
                for claim, whose in (
                    ("loss", "the mean loss by the true Fisher"),
                    ("each_loss", "each by the empirical"),
                )
                if (name := f"{claim}/ratio/{radius}") in of
            ]
            steps.append(f"steps of {float(radius):.2g}: {', '.join(claims)}")
        said.append(f"{band}: measured over predicted, {'; '.join(steps)}.")
    return said


def verdict_of_damage(damage: Mapping[str, Figures], task: int) -> list[str]:
    """How much of the damage over all timesteps lies along the directions; of figures that are supported."""
    of = damage[ALL]
    if "loss" not in of:
        return [f"damage to task {task}: too few samples to tell."]
    said = f"damage to task {task}: the loss changed by {_told(of['loss'])}"
    for name in (f"v, {ALL}", f"mu, {ALL}"):
        along, without = f"loss_along {name}", f"loss_without {name}"
        if along in of and without in of:
            said += f"; along {name} alone by {_told(of[along])}, by all but that {_told(of[without])}"
        else:
            said += f"; along {name}: not told by these samples"
    return [f"{said}."]


def _kept(ratio: Estimate) -> str:
    """Measured over predicted, in words."""
    low, high = ratio.interval
    if not ratio.known(None):
        return "cannot be told"
    if low >= 0.8 and high <= 1.25:
        return "keeps its word"
    return "says too little" if low > 1.25 else "says too much" if high < 0.8 else "is not far off, or cannot be told"


def _of_band(of: Figures) -> list[str]:
    parts = [_shape(of), _direction(of), _mean(of), _remainder(of), _true(of)]
    return [part for part in parts if part]


def _said(figure: Estimate, says: Mapping[str, str], of: str = "") -> str:
    """What its level is called, and the figure."""
    side = level(figure)
    return f"{says.get(side or '', says['else'])} ({_told(figure)}{of})"


def _shape(of: Figures) -> str:
    least, most = of["leading_share_held_out"], of["leading_share"]
    if of["trace"].value == 0:
        return "all gradients are zero"
    between = f"({_told(least)} of the trace along one direction on other samples, {_told(most)} on its own)"
    if level(least) == "high":
        return f"close to rank one {between}"
    if level(most) == "low":
        return f"not rank one {between}"
    half = level(least) in ("not low", "between")
    if level(most) in ("not high", "between"):
        return f"one direction among others {between}" if half else f"not close to rank one {between}"
    return f"half or more of it in one direction {between}" if half else f"too few samples to tell the rank {between}"


def _direction(of: Figures) -> str:
    itself = of["v_itself"]
    if (known := determined(itself)) is None:
        return f"too few samples to tell whether there is one leading direction ({_told(itself)} with itself)"
    if not known:
        return f"these samples do not determine the leading direction (it agrees with itself at {_told(itself)})"
    said = [f"the direction agrees with itself ({_told(itself)})"]
    there = [kind for kind in COMPARED if f"v_{kind}_itself" in of and determined(of[f"v_{kind}_itself"])]
    cosines = {kind: of[f"v_{kind}_corrected"] for kind in there}
    if "v_other_corrected" in of:
        says = {
            "high": "and with another task's: task-independent",
            "not low": "and at least in part with another task's",
            "between": "and in part with another task's",
            "not high": "and at most in part with another task's",
            "low": "and not with another task's: it is this task's",
            "else": "and whether with another task's cannot be told",
        }
        said.append(_said(cosines["other"], says) if "other" in cosines else says["else"])
    if {"relabelled", "other"} <= cosines.keys():
        same, other = cosines["relabelled"], cosines["other"]
        if same.known(0.25) and other.known(0.25) and _apart(same, other):
            effect = "differ more" if same.value > other.value else "agree more"
            says = {"high": ": under the same labels it is task-independent"}
            said.append(f"labels alone make it {effect}{says.get(level(same) or '', '')} ({_told(same)})")
    if "noise" in cosines:
        says = {
            "high": "pure noise, without any image, has the same direction",
            "not low": "pure noise has at least part of it",
            "between": "pure noise has part of it",
            "not high": "pure noise has at most part of it",
            "low": "pure noise has another",
            "else": "whether pure noise has it cannot be told",
        }
        said.append(_said(cosines["noise"], says))
    return ", ".join(said)


def _mean(of: Figures) -> str:
    itself = of["mu_itself"]
    if (known := determined(itself)) is None:
        return f"whether there is a mean gradient beside sampling noise cannot be told ({_told(itself)} with itself)"
    if not known:
        return f"the mean gradient is mostly sampling noise ({_told(itself)} with itself)"
    if not determined(of["v_itself"]):
        return f"there is a mean gradient beside sampling noise ({_told(itself)} with itself)"
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
    if not determined(itself):
        return f"these samples do not determine a linear denoiser's direction ({_told(itself)} with itself)"
    if not determined(of["v_itself"]):
        return f"a linear denoiser's direction agrees with itself ({_told(itself)}), and has none to be compared with"
    if level(certain) == "high":
        return f"a linear denoiser's direction is bound to survive (cosine {_told(certain)} or more)"
    none = certain.interval[0] <= 0
    bound = "no bound holds it" if none else f"bound to a cosine of {_told(certain)} or more"
    angle = f"at sine {_told(sine)}" if sine.known(0.25) else "at an angle that is not known"
    return f"a linear denoiser's direction is {angle}, {bound} (remainder {_told(of['remainder_ratio'])} of the gap)"


def _true(of: Figures) -> str:
    if "true_leading_share_held_out" not in of:
        return ""
    true, empirical = of["true_leading_share_held_out"], of["leading_share_held_out"]
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
