"""The figures of 2509.23593 on a small model, of an audit at single timesteps, with the published values beside.

    cl-diffusion test -c configs/diagnostics/timesteps.yaml --ckpt_path runs/mnist16_joint/checkpoints/last.ckpt
    python tools/rank1_figures.py runs/mnist16_joint/timesteps/after_task_5/audit.json

``spectrum.png``: lambda_2 / lambda_1 and lambda_1 / trace of the empirical Fisher at each timestep. ``errors.png``:
relative Frobenius errors of rank one along the leading eigenvector and along the mean gradient that half of the samples
have, and of its diagonal; below 0 where sampling noise takes them there.
``linearity.png``: how far the predicted noise is from the best multiple of ``x_t``. ``means.png``: the cosines between
the mean gradients of different timesteps, without what sampling noise takes from each. And the table of all of them.
Bars are 95 per cent intervals over samples; hollow or in brackets is what the samples do not support.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import table

PUBLISHED = {
    "second_to_first": {100: ("< 0.4", 0.4), 700: ("0.022", 0.022)},
    "leading_share": {900: ("about 0.99", 0.99)},
    "diagonal_error": dict.fromkeys(range(100, 1000, 100), ("about 1.0", 1.0)),
}
"""By figure and timestep, as said and as drawn: 2509.23593, a small MNIST model, 1024 samples a timestep."""

Figures = Mapping[int, Mapping[str, Any]]


def at_timesteps(audit: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Figures by timestep, ascending.

    Raises:
        SystemExit: the audit is not one of single timesteps.
    """
    found = {int(band.removeprefix("t = ")): of for band, of in audit["figures"].items() if band.startswith("t = ")}
    if not all(band in audit.get("nonlinearity", {}) for band in audit["figures"] if band.startswith("t = ")):
        raise SystemExit("the audit has no distance from a linear prediction; its module has no `linear_output`")
    if not found:
        raise SystemExit(f"an audit in the bands {', '.join(audit['figures'])}; expected one of single timesteps")
    return dict(sorted(found.items()))


def draw_curves(figures: Figures, names: Mapping[str, str], title: str, path: Path) -> None:
    """A curve for each figure, with its intervals; published values as crosses, a bound as an arrow down from it."""
    from matplotlib import pyplot
    from matplotlib.markers import CARETDOWN

    picture, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    for number, (name, label) in enumerate(names.items()):
        there = {t: of[name] for t, of in figures.items() if None not in (of[name]["value"], of[name]["high"])}
        values = [of["value"] for of in there.values()]
        errors = [(of["high"] - of["low"]) / 2 for of in there.values()]
        axes.errorbar(list(there), values, yerr=errors, capsize=2, color=f"C{number}", label=label)
        for t, of in there.items():
            face = f"C{number}" if of["known"] else "white"
            axes.plot(t, of["value"], "o", color=f"C{number}", markerfacecolor=face)
        label = f"{label}, published"
        for t, (said, value) in PUBLISHED.get(name, {}).items():
            marker: Any = CARETDOWN if said.startswith("<") else "x"
            axes.plot(t, value, linestyle="", marker=marker, markersize=9, color=f"C{number}", label=label)
            label = "_"  # named once
    axes.set(xlabel="t (hollow: not supported by the samples)", title=title, ylim=(-0.2, 1.1))
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.grid(alpha=0.3)
    picture.legend(fontsize=8, loc="outside lower center", ncols=3)
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def draw_linearity(audit: Mapping[str, Any], timesteps: list[int], title: str, path: Path) -> None:
    """How far the output is from the best linear one's, relative to its size."""
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    of = [audit["nonlinearity"][f"t = {t}"] for t in timesteps]
    errors = [(each["high"] - each["low"]) / 2 for each in of]
    axes.errorbar(timesteps, [each["value"] for each in of], yerr=errors, marker="o", capsize=2)
    axes.set(xlabel="t", ylabel="|f - f_lin| / |f|", title=title, yscale="log")
    axes.grid(alpha=0.3, which="both")
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def draw_means(figures: Figures, title: str, path: Path) -> None:
    """Cosines of mean gradients, every timestep with every other."""
    from matplotlib import pyplot

    timesteps = list(figures)
    cosines = [[1.0 if s == t else _value(figures[s][f"mu_with t = {t}"]) for t in timesteps] for s in timesteps]
    picture, axes = pyplot.subplots(figsize=(5.4, 4.6), layout="constrained")
    shown = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
    axes.set_xticks(range(len(timesteps)), timesteps, fontsize=8)
    axes.set_yticks(range(len(timesteps)), timesteps, fontsize=8)
    for row, values in enumerate(cosines):
        for column, value in enumerate(values):
            color = "white" if abs(value) > 0.7 else "black"
            known = row == column or figures[timesteps[row]][f"mu_with t = {timesteps[column]}"]["known"]
            said = f"{value:.2f}" if known else f"({value:.2f})"
            axes.text(column, row, said, ha="center", va="center", fontsize=6, color=color)
    axes.set(title=title, xlabel="t (in brackets: not supported by the samples)", ylabel="t")
    picture.colorbar(shown)
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def _value(figure: Mapping[str, Any]) -> float:
    """NaN where there is none."""
    return float("nan") if figure["value"] is None else float(figure["value"])


def told(figures: Figures, audit: Mapping[str, Any]) -> str:
    """The table."""
    names = ("second_to_first", "leading_share", "leading_error", "mean_error", "diagonal_error", "mu_itself")
    lines = []
    for t, of in figures.items():
        line = [str(t)]
        for name in names:
            figure, published = of[name], PUBLISHED.get(name, {}).get(t)
            cell = "" if figure["value"] is None else f"{figure['value']:.3g}"
            if None not in (figure["low"], figure["high"]):
                cell += f" +- {(figure['high'] - figure['low']) / 2:.1g}"
            cell = cell if figure["known"] or not cell else f"({cell})"
            line.append(cell + (f"; published {published[0]}" if published else ""))
        apart = audit["nonlinearity"][f"t = {t}"]
        lines.append([*line, f"{apart['value']:.2g} +- {(apart['high'] - apart['low']) / 2:.1g}"])
    return table(["t", *names, "distance from linear"], lines)


def main() -> None:
    """Draw the four figures beside the audit, or where asked, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path, help="audit.json of configs/diagnostics/timesteps.yaml")
    parser.add_argument("--out", type=Path, help="folder of the pictures; that of the audit by default")
    given = parser.parse_args()
    audit = json.loads(given.audit.read_text())
    figures = at_timesteps(audit)
    of = audit["provenance"]
    whose = f"task {of['task']}, {of['samples']} samples at each timestep"
    out = given.out or given.audit.parent
    out.mkdir(parents=True, exist_ok=True)
    import matplotlib

    matplotlib.use("agg")
    shape = {"second_to_first": "lambda_2 / lambda_1", "leading_share": "lambda_1 / trace"}
    draw_curves(figures, shape, f"empirical Fisher at one timestep\n{whose}", out / "spectrum.png")
    errors = {
        "leading_error": "rank one along the leading eigenvector",
        "mean_error": "rank one along the mean gradient",
        "diagonal_error": "diagonal",
    }
    draw_curves(figures, errors, f"relative Frobenius error\n{whose}", out / "errors.png")
    draw_linearity(audit, list(figures), f"distance from the best linear prediction\n{whose}", out / "linearity.png")
    draw_means(figures, f"cosines of mean gradients\n{whose}", out / "means.png")
    print(told(figures, audit))


if __name__ == "__main__":
    main()
