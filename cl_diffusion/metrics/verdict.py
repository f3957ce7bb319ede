"""An audit in words, by rules that are stated: never more certain than the intervals."""

from __future__ import annotations

from collections.abc import Mapping

from cl_diffusion.metrics.half_samples import Estimate

Figures = Mapping[str, Estimate]

HIGH, LOW = 0.8, 0.5
"""A cosine or share above ``HIGH`` with its whole interval is called high, below ``LOW`` low."""


def level(figure: Estimate, high: float = HIGH, low: float = LOW) -> str | None:
    """``"high"`` or ``"low"`` where the whole interval is on that side, ``"between"`` where all of it is; else None."""
    below, above = figure.interval
    if not figure.known(0.25):
        return None
    if below >= high:
        return "high"
    if above <= low:
        return "low"
    return "between" if low <= below and above <= high else None


def verdict(figures: Mapping[str, Figures]) -> list[str]:
    """A sentence or two on each of: shape, whose direction it is, linear model, true Fisher; band by band.

    The rules, on figures of ``GradientAudit.estimates`` and their 95 per cent intervals:

    - *shape*: ``leading_share`` high: rank one; low: not rank one;
    - *direction*: where ``v_itself`` is low, the samples do not determine the direction and nothing more is said of it.
      Where it is not, ``v_other_corrected`` high: task-independent; low: of this task; and likewise what labels and
      data have to do with it, from ``v_relabelled_corrected`` and ``v_noise_corrected``;
    - *mean*: whether the mean gradient agrees with itself, and with the leading direction;
    - *linear model*: ``remainder_ratio`` below 1/2 with its interval: the linear denoiser's direction is bound to
      survive; else the measured angle alone is said;
    - *true Fisher*: its leading share against the empirical one's, where the intervals are apart.
    """
    return [f"{band}: {'; '.join(said)}." for band, of in figures.items() if (said := _of_band(of))]


def _of_band(of: Figures) -> list[str]:
    parts = [_shape(of), _direction(of), _mean(of), _remainder(of), _true(of)]
    return [part for part in parts if part]


def _shape(of: Figures) -> str:
    share = of["leading_share"]
    says = {
        "high": "close to rank one",
        "low": "not rank one",
        "between": "one direction among others",
        None: "too few samples to tell the rank",
    }
    return f"{says[level(share)]} (the leading direction has {_told(share)} of the trace)"


def _direction(of: Figures) -> str:
    itself = of["v_itself"]
    if level(itself) == "low":
        return f"these samples do not determine the leading direction (it agrees with itself at {_told(itself)})"
    if level(itself) is None and itself.interval[0] < LOW:
        return f"too few samples to tell whether there is one leading direction ({_told(itself)} with itself)"
    said = [f"the direction agrees with itself ({_told(itself)})"]
    if "v_other_corrected" in of:
        other = of["v_other_corrected"]
        says = {
            "high": "and with another task's: task-independent",
            "low": "and not with another task's: it is this task's",
            "between": "and in part with another task's",
            None: "and whether with another task's cannot be told",
        }
        said.append(f"{says[level(other)]} ({_told(other)})")
    if "v_relabelled_corrected" in of:
        same = of["v_relabelled_corrected"]
        if "v_other_corrected" in of and _apart(same, of["v_other_corrected"]):
            more = same.value > of["v_other_corrected"].value
            said.append(
                f"labels alone make it {'differ more' if more else 'agree more'} ({_told(same)} under one label)"
            )
    if "v_noise_corrected" in of:
        noise = of["v_noise_corrected"]
        says = {
            "high": "pure noise, without any image, has the same direction",
            "low": "pure noise has another",
            "between": "pure noise has it in part",
            None: "whether pure noise has it cannot be told",
        }
        said.append(f"{says[level(noise)]} ({_told(noise)})")
    return ", ".join(said)


def _mean(of: Figures) -> str:
    itself, along = of["mu_itself"], of["mean_to_leading"]
    if level(itself) == "low":
        return f"the mean gradient is mostly sampling noise ({_told(itself)} with itself)"
    says = {"high": "is the leading direction", "low": "is not the leading direction", "between": "has part of it"}
    side = level(along)
    return f"the mean gradient {says[side]} ({_told(along)})" if side else ""


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
