"""Dead units told from rarely firing ones: by each unit's own threshold, and by one for all."""

from __future__ import annotations

from pathlib import Path

import torch
from tables import table

from cl_diffusion.plasticity.firing import InterFiringTimes

Curves = dict[str, list[tuple[float, float, float]]]
"""By kind of threshold: the share of live units that are silent for so long, and the steps, median and mean."""


def detection(picture: Path) -> str:
    """Half of the units die; who is told to be dead, and how late? A table, and a picture in a file.

    Firing rates are log-uniform over ``[0.005, 0.5]``. A threshold a unit, learned from its own firing, against one for
    all, at the same share of live units that are reset within the time that it takes.
    """
    generator = torch.Generator().manual_seed(0)
    units, steps = 4000, 4000
    rates = torch.exp(torch.empty(units, dtype=torch.float64).uniform_(generator=generator) * 4.605 - 5.298)
    lines: list[list[str]] = []
    curves: Curves = {"each unit's own": [], "one for all": []}
    detector = InterFiringTimes(units, 0.02, initial_age=10**6)
    for _ in range(steps):
        detector.observe(torch.rand(units, generator=generator, dtype=torch.float64) < rates, 1)
    for eta in (0.3, 0.1, 0.05, 0.02, 0.01, 0.005):
        detector.threshold, detector.limits = eta, torch.full((units,), 10**6)
        detector.update(1)
        own = detector.limits.double().clamp(max=1e6)
        false = ((1 - rates) ** own).mean()
        curves["each unit's own"].append((float(false), float(own.median()), float(own.mean())))
        lines.append(
            [f"own, eta = {eta}", f"{float(false):.3g}", f"{float(own.median()):.3g}", f"{float(own.mean()):.4g}"]
        )
    for age in (10, 30, 100, 300, 600, 1000):
        one = torch.full((units,), float(age), dtype=torch.float64)
        false = ((1 - rates) ** one).mean()
        curves["one for all"].append((float(false), float(age), float(age)))
        lines.append([f"one for all, {age}", f"{float(false):.3g}", f"{age}", f"{age}"])
    _draw(curves, picture)
    head = ["threshold", "live units silent for so long", "steps until a dead one is told, median", "mean"]
    return table(head, lines)


def _draw(curves: Curves, path: Path) -> None:
    """The share of live units, and the median and mean steps, of each kind of threshold."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for name, points in curves.items():
        median = "" if name == "one for all" else ", median unit"
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name + median)
        if median:
            axes.plot([p[0] for p in points], [p[2] for p in points], marker=".", linestyle="--", label=f"{name}, mean")
    axes.set(xscale="log", yscale="log", xlabel="live units that are silent for so long, share")
    axes.set_ylabel("steps until a dead unit is told")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
