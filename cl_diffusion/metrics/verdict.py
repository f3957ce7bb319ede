"""An audit in words, by rules that are stated: never more certain than the intervals."""

from __future__ import annotations

from collections.abc import Mapping

from cl_diffusion.metrics.half_samples import Estimate

Figures = Mapping[str, Estimate]

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

    - *shape*: ``leading_share`` high: rank one; low: not rank one;
    - *direction*: only where ``v_itself`` is at least ``LOW`` with its interval do the samples determine it, else
      nothing more is said of it. ``v_other_corrected`` high: task-independent; low: of this task; and likewise what
      labels and data have to do with it, from ``v_relabelled_corrected`` and ``v_noise_corrected``;
    - *mean*: whether the mean gradient agrees with itself, and only then, with the leading direction;
    - *linear model*: ``remainder_ratio`` below 1/2 with its interval: the linear denoiser's direction is bound to
      survive; else the measured angle alone is said;
    - *true Fisher*: its leading share against the empirical one's, where the intervals are apart.
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
    return _said(of["leading_share"], says, " of the trace")


def _direction(of: Figures) -> str:
    itself = of["v_itself"]
    if level(itself) in ("low", "not high"):
        return f"these samples do not determine the leading direction (it agrees with itself at {_told(itself)})"
    if level(itself) in (None, "unknown"):
        return f"too few samples to tell whether there is one leading direction ({_told(itself)} with itself)"
    said = [f"the direction agrees with itself ({_told(itself)})"]
    if "v_other_corrected" in of:
        says = {
            "high": "and with another task's: task-independent",
            "not low": "and at least in part with another task's",
            "between": "and in part with another task's",
            "not high": "and at most in part with another task's",
            "low": "and not with another task's: it is this task's",
            "else": "and whether with another task's cannot be told",
        }
        said.append(_said(of["v_other_corrected"], says))
    if "v_relabelled_corrected" in of and "v_other_corrected" in of:
        same, other = of["v_relabelled_corrected"], of["v_other_corrected"]
        if same.known(0.25) and other.known(0.25) and _apart(same, other):
            effect = "differ more" if same.value > other.value else "agree more"
            same_labels = {"high": ": with the same labels it is task-independent"}.get(level(same) or "", "")
            said.append(f"labels alone make it {effect} ({_told(same)} under the same labels){same_labels}")
    if "v_noise_corrected" in of:
        says = {
            "high": "pure noise, without any image, has the same direction",
            "not low": "pure noise has at least part of it",
            "between": "pure noise has part of it",
            "not high": "pure noise has at most part of it",
            "low": "pure noise has another",
            "else": "whether pure noise has it cannot be told",
        }
        said.append(_said(of["v_noise_corrected"], says))
    return ", ".join(said)


def _mean(of: Figures) -> str:
    itself = of["mu_itself"]
    if level(itself) in ("low", "not high"):
        return f"the mean gradient is mostly sampling noise ({_told(itself)} with itself)"
    if level(itself) in (None, "unknown"):
        return f"whether there is a mean gradient beside sampling noise cannot be told ({_told(itself)} with itself)"
    says = {
        "high": "the mean gradient is the leading direction",
        "not low": "the mean gradient has half of the leading direction or more",
        "between": "the mean gradient has part of the leading direction",
        "not high": "the mean gradient has at most part of the leading direction",
        "low": "the mean gradient is not the leading direction",
        "else": "whether the mean gradient is the leading direction cannot be told",
    }
    return _said(of["mean_to_leading"], says)


def _remainder(of: Figures) -> str:
    if "remainder_ratio" not in of:
        return ""
    ratio, sine = of["remainder_ratio"], of["remainder_sine"]
    if ratio.known(0.25) and ratio.interval[1] < 0.5:
        return f"a linear denoiser's direction is bound to survive (remainder {_told(ratio)} of the gap)"
    bound = f"no bound holds it (remainder {_told(ratio)} of the gap)"
    if not sine.known(0.25):
        return f"{bound}, and the angle to a linear denoiser's direction is not known"
    return f"a linear denoiser's direction is at sine {_told(sine)}, {bound}"


def _true(of: Figures) -> str:
    if "true_leading_share" not in of:
        return ""
    true, empirical = of["true_leading_share"], of["leading_share"]
    if not _apart(true, empirical):
        return "the true Fisher's leading share cannot be told from the empirical one's"
    word = "flatter" if true.value < empirical.value else "steeper"
    rank = of["true_effective_rank_corrected"]
    return f"the true Fisher is {word} ({_told(true)} of its trace on one direction; effective rank {_told(rank)})"


def _apart(a: Estimate, b: Estimate) -> bool:
    """Whether the intervals do not meet."""
    return a.interval[0] > b.interval[1] or b.interval[0] > a.interval[1]


def _told(figure: Estimate) -> str:
    """The figure, plus or minus what makes its interval."""
    return f"{figure.value:.2g} +- {1.96 * figure.error:.1g}"
