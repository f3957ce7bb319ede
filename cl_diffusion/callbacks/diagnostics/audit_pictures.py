"""The pictures of an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cl_diffusion.callbacks.diagnostics.audit_record import AuditRecord
from cl_diffusion.metrics.gradient_audit import ALL
from cl_diffusion.metrics.half_samples import Estimate

Figures = Mapping[str, Mapping[str, Estimate]]

_MARKERS = "os^vDP"
_AGREEMENT = {
    "itself": "with itself",
    "other_corrected": "another task's",
    "relabelled_corrected": "another task's, same labels",
    "noise_corrected": "pure noise's",
}
_REMAINDER = {
    "remainder_sine": "measured sine",
    "remainder_bound": "bound: 2 |R| / gap",
    "remainder_sharp_bound": "bound of sin 2a, for |R| < gap / 2",
    "remainder_residual_bound": "bound: |R v| / (lambda_1 - lambda_2)",
}


def draw_audit(record: AuditRecord, folder: Path) -> None:
    """Write ``directions.png``, ``spectra.png``, ``remainder.png``, ``preservation.png`` and ``damage.png``.

    What there is nothing to draw of is left out. Bars are figures with their 95 per cent intervals; pale ones are of
    figures that their samples do not support (``Estimate.known``), or that have no interval.
    """
    import matplotlib

    matplotlib.use("agg")
    samples = f"{record.provenance['samples']} samples{' a band' * (len(record.figures) > 1)}"
    of = f"task {record.provenance['task']}, {samples}"
    bars = "whiskers: 95 per cent over samples, none where unknown; pale: these samples do not support it"
    _directions(record, folder / "directions.png", f"{of}; {bars}")
    note = f"{of}; the leading eigenvalues of the samples' own matrix, steeper than what they are drawn from"
    _spectra(record, folder / "spectra.png", note)
    if any("remainder_sine" in figures for figures in record.figures.values()):
        _remainder(record, folder / "remainder.png", f"{of}; {bars}, or says nothing (above 1)")
    if record.predictions:
        _preservation(record, folder / "preservation.png", of)
    if record.damage:
        _damage(record, folder / "damage.png", f"{samples}; {bars}; parts do not add up to the whole")


def _directions(record: AuditRecord, path: Path, note: str) -> None:
    with _Panels(path, 2, 5.5, note) as panels:
        for axes, (letter, title) in zip(
            panels, {"v": "leading direction", "mu": "mean gradient"}.items(), strict=True
        ):
            named = {f"{letter}_{key}": label for key, label in _AGREEMENT.items()}
            _bars(axes, record, "figures", named)
            low, high = axes.get_ylim()
            axes.set(title=title, ylabel="cosine", ylim=(max(low, -2.0), min(max(high, 1.1), 2.0)))
            for level in (-1, 0, 1):
                if level >= low:
                    axes.axhline(level, color="grey", linewidth=0.5)


def _remainder(record: AuditRecord, path: Path, note: str) -> None:
    with _Panels(path, 1, 6.5, note) as (axes,):
        _bars(axes, record, "figures", _REMAINDER, most=2.0, sound=1.0)
        title = "from the linear denoiser's direction to the model's"
        axes.set(title=title, ylabel="sine of the angle, and its bounds", ylim=(0, 2))
        axes.set_xlabel("bounds above 2 are left out")
        axes.axhline(1, color="grey", linewidth=0.5)


def _spectra(record: AuditRecord, path: Path, note: str) -> None:
    with _Panels(path, 1, 6.5, note) as (axes,):
        for number, (band, of) in enumerate(record.spectra.items()):
            for kind, style in (("own", "-"), ("true", "--")):
                if kind in of:
                    label = f"{band}, {'empirical' if kind == 'own' else 'true'}"
                    axes.plot(range(1, len(of[kind]) + 1), of[kind], style, color=f"C{number}", label=label)
        axes.set(xscale="log", yscale="log", xlabel="eigenvalue", ylabel="share of the trace", title="spectra")
        axes.set_ylim(bottom=1e-4)
        axes.legend(fontsize=7)


def _preservation(record: AuditRecord, path: Path, note: str) -> None:
    titles = {
        "loss": "mean loss, by the Gauss-Newton matrix (the true Fisher)",
        "each_loss": "each sample's loss, by the empirical Fisher",
    }
    some = next(iter(next(iter(record.predictions.values())).values()))
    claims = [claim for claim in titles if claim in some]
    with _Panels(path, len(claims), 5.5, f"{note}; steps both ways along each direction, on other draws") as panels:
        for axes, claim in zip(panels, claims, strict=True):
            every = drawn = 0
            for number, (band, by_radius) in enumerate(record.predictions.items()):
                for marker, by_claim in zip(_MARKERS, by_radius.values(), strict=False):
                    pairs = [pair for pair in by_claim[claim].values() if min(pair) > 0]
                    every, drawn = every + len(by_claim[claim]), drawn + len(pairs)
                    if pairs:
                        axes.plot(*zip(*pairs, strict=True), marker, color=f"C{number}", markersize=4, alpha=0.7)
                axes.plot([], [], "o", color=f"C{number}", label=band)
            measured = "measured" if drawn == every else f"measured ({every - drawn} of {every} not above 0: not drawn)"
            axes.set(xscale="log", yscale="log", xlabel="predicted", ylabel=measured, title=titles[claim])
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color="grey", linewidth=0.7)
            for marker, share in zip(_MARKERS, record.provenance.get("radii", ()), strict=False):
                axes.plot([], [], marker, color="grey", label=f"step of {share:g} of the weights' length")
            axes.legend(fontsize=7)


def _damage(record: AuditRecord, path: Path, note: str) -> None:
    """The parts need not add up: each is put on by itself, far from where its neighbours lead."""
    task = record.provenance["damage"]["task"]
    parts = {"loss": "all of it"}
    for name in (f"v, {ALL}", f"mu, {ALL}"):
        parts |= {f"loss_along {name}": f"its part along {name}", f"loss_without {name}": f"all but that along {name}"}
    with _Panels(path, 1, 7.5, note) as (axes,):
        _bars(axes, record, "damage", parts)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set(title=f"what later training did to task {task}", ylabel="change of the denoising loss")


def _bars(
    axes: Any,
    record: AuditRecord,
    part: Literal["figures", "damage"],
    named: Mapping[str, str],
    most: float = math.inf,
    sound: float = math.inf,
) -> None:
    """Groups of bars, one a band; a figure that is not finite, or above ``most``, is left out, above ``sound`` pale."""
    from matplotlib.patches import Patch

    figures: Figures = getattr(record, part)
    bands = list(figures)
    shown = {key: label for key, label in named.items() if any(key in of for of in figures.values())}
    width, legend = 0.8 / max(1, len(shown)), []
    for number, (key, label) in enumerate(shown.items()):
        drawn, color = 0, f"C{number}"
        for position, band in enumerate(bands):
            estimate = figures[band].get(key)
            if estimate is None or not abs(estimate.value) < most:
                continue
            drawn += 1
            place = position + (number - (len(shown) - 1) / 2) * width
            solid = record.known(part, band, key) and estimate.value <= sound
            axes.bar(place, estimate.value, width, color=color, alpha=1.0 if solid else 0.3)
            if math.isfinite(estimate.error):
                axes.errorbar(place, estimate.value, 1.96 * estimate.error, color="black", capsize=2, linewidth=0.8)
        legend.append(Patch(color=color, label=label if drawn else f"{label} (none)"))
    times = [band.removeprefix("t = ") for band in bands]
    axes.set_xticks(range(len(bands)), times)
    if times != bands and not axes.get_xlabel():
        axes.set_xlabel("t")
    axes.legend(handles=legend, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))


class _Panels:
    """A figure with so many panels beside each other and a note below them, written on leaving."""

    def __init__(self, path: Path, number: int, width: float, note: str) -> None:
        from matplotlib import pyplot

        self.path = path
        self.figure, every = pyplot.subplots(
            1, number, figsize=(width * number, 4.2), layout="constrained", squeeze=False
        )
        self.figure.supxlabel(note, fontsize=7)
        self.panels: Sequence[Any] = list(every[0])

    def __enter__(self) -> Sequence[Any]:
        return self.panels

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        from matplotlib import pyplot

        if error is None:
            self.figure.savefig(self.path, dpi=120)
        pyplot.close(self.figure)
