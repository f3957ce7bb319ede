"""What finished runs have measured, as a table and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from presets import PENALTIES, Preset
from tables import interval, standard_error, table

from cl_diffusion.metrics.continual_file import read_matrices
from cl_diffusion.metrics.continual_matrix import ContinualMatrix


@dataclass(frozen=True)
class Outcome:
    """A finished run: its matrices by metric, and what they were measured with."""

    matrices: Mapping[str, ContinualMatrix]
    yardstick: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        """What a run has written."""
        matrices = read_matrices(folder / "continual.csv")
        return cls(matrices, json.loads((folder / "yardstick.json").read_text()))

    def plasticity(self, metric: str) -> float:
        """The mean over the tasks after the first, each when it was learned."""
        return self.matrices[metric].plasticity()

    def old_forgetting(self, metric: str) -> float:
        """How much worse the tasks before the last have become, their mean."""
        transfer = self.matrices[metric].backward_transfer()
        return -transfer + 0.0


Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By row of the table, and seed."""

Figure = Callable[[Outcome], float]


class Comparison:
    """Rows of a table, all measured with one yardstick.

    Raises:
        ValueError: runs were judged by different classifiers, or ended after different numbers of tasks.
    """

    def __init__(self, outcomes: Outcomes, preset: Preset, against: str) -> None:
        self.outcomes, self.preset, self.against = outcomes, preset, against
        every = [outcome for of in outcomes.values() for outcome in of.values()]
        judges = {outcome.yardstick["reference_classifier"] for outcome in every}
        if len(judges) > 1:
            raise ValueError(
                f"the runs were judged by {len(judges)} different reference classifiers (yardstick.json), so their "
                "figures do not compare: data or its split differ; run them anew into another --out"
            )
        if len(lasts := {outcome.matrices["denoising_loss"].last for outcome in every}) > 1:
            raise ValueError(f"the runs ended after {sorted(lasts)} tasks, so their figures do not compare")
        self.inception = all(outcome.yardstick["inception"] for outcome in every)
        self.accuracy = statistics.mean(outcome.yardstick["held_out_accuracy"] for outcome in every)

    @property
    def figures(self) -> dict[str, Figure]:
        """The columns, by title; a preset's published figures are of the first."""
        if self.preset.error:
            error = "denoising_loss"
            return {
                "old error": lambda run: run.matrices[error].retention(),
                "forgetting": lambda run: run.old_forgetting(error),
                "new error": lambda run: run.matrices[error].entries[(last := run.matrices[error].last), last],
            }
        distance = "inception_distance" if self.inception else "frechet_distance"
        figures: dict[str, Figure] = {
            "AFID": lambda run: run.matrices[distance].average(),
            "forgetting": lambda run: run.matrices[distance].forgetting(),
            "class agreement": lambda run: run.matrices["class_agreement"].average(),
            "retention": lambda run: run.matrices["class_agreement"].retention(),
            "plasticity": lambda run: run.plasticity("class_agreement"),
        }
        for band in self.preset.bands:
            figures[f"old, {band}"] = partial(Outcome.old_forgetting, metric=f"denoising_loss/{band}")
            figures[f"new, {band}"] = partial(Outcome.plasticity, metric=f"denoising_loss/{band}")
        return figures

    def values(self, row: str, title: str) -> list[float]:
        """A figure on each seed."""
        return [self.figures[title](outcome) for outcome in self.outcomes[row].values()]

    def differences(self, row: str, title: str) -> list[float]:
        """From the row ``against``, on each seed that both have."""
        figure, others = self.figures[title], self.outcomes.get(self.against, {})
        own = self.outcomes[row]
        return [figure(own[seed]) - figure(others[seed]) for seed in own if seed in others and row != self.against]

    def published(self, row: str, title: str) -> float | None:
        """Of a row and figure, if it was."""
        known = dict(zip(self.figures, self.preset.published.get(_method(row), ()), strict=False))
        return known.get(title)

    def records(self) -> Iterator[dict[str, object]]:
        """A record a row and figure, for a CSV file."""
        for row, of in self.outcomes.items():
            for title in self.figures:
                values, differences = self.values(row, title), self.differences(row, title)
                yield {
                    "method": row,
                    "figure": title,
                    "seeds": len(of),
                    "mean": statistics.mean(values),
                    "standard_error": standard_error(values),
                    "published": self.published(row, title),
                    f"difference_from_{self.against}": statistics.mean(differences) if differences else None,
                    "difference_standard_error": standard_error(differences),
                }

    def markdown(self) -> str:
        """The table, the paired differences, and what the figures are."""
        titles = list(self.figures)
        beside = [title for title in titles if any(self.published(row, title) is not None for row in self._every_row())]
        head = ["method", "seeds"]
        for title in titles:
            head += [title, f"{title}, published"] if title in beside else [title]
        lines = []
        for row in self._every_row():
            line = [row, str(len(self.outcomes.get(row, {})))]
            for title in titles:
                line.append(interval(self.values(row, title)) if row in self.outcomes else "")
                if title in beside:
                    published = self.published(row, title)
                    line.append("" if published is None else f"{published:g}")
            lines.append(line)
        paired = [
            [row, *(interval(self.differences(row, title)) for title in titles)]
            for row in self.outcomes
            if self.differences(row, titles[0])
        ]
        said = [table(head, lines)]
        if paired:
            said += [f"Differences from {self.against} on the same seeds:", table(["method", *titles], paired)]
        return "\n\n".join([*said, self.legend()]) + "\n"

    def legend(self) -> str:
        """What the figures are, and whether published ones compare."""
        preset = self.preset
        published = f" Published: {preset.source}. {preset.note}".rstrip() if preset.published else ""
        if preset.error:
            return (
                "Means over seeds, plus or minus the standard error. Denoising losses on held-out images: of the tasks "
                f"before the last, by how much they rose since they were learned, and of the last.{published}"
            )
        bands = (
            " By band of the signal-to-noise ratio: by how much the denoising loss of the tasks before the last has "
            "risen since they were learned (old), and that of each task after the first when it was learned (new)."
            if preset.bands
            else ""
        )
        distances = (
            "Distances are in 2048 Inception features (FID)."
            if self.inception
            else "Distances are in the features of the project's own classifier, not FID: they compare with each "
            "other, and not with published ones."
        )
        return (
            f"Means over seeds, plus or minus the standard error. {distances} Class agreement is that classifier's, of "
            f"held-out accuracy {self.accuracy:.3f}: of all tasks after the last; retention, of the tasks before the "
            f"last; plasticity, of each task after the first when it was learned.{bands}{published}"
        )

    def _every_row(self) -> list[str]:
        """Those that ran, and those of which something is published."""
        ran = {_method(row) for row in self.outcomes}
        return [*self.outcomes, *(row for row in self.preset.published if row not in ran)]


def draw_front(comparison: Comparison, path: Path, title: str) -> None:
    """Retention against plasticity; the strengths of one method are joined by a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    across, up = ("new error", "old error") if comparison.preset.error else ("plasticity", "retention")
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    methods: dict[str, list[str]] = {}
    for row in comparison.outcomes:
        methods.setdefault(row.partition(", strength ")[0], []).append(row)
    for number, (method, of) in enumerate(methods.items()):
        of.sort(key=lambda row: float(row.partition(", strength ")[2] or "nan"))
        x, y = ([comparison.values(row, title) for row in of] for title in (across, up))
        seeded = all(len(v) > 1 for v in x)
        errors = {"xerr": [standard_error(v) for v in x], "yerr": [standard_error(v) for v in y]} if seeded else {}
        middles = [statistics.mean(v) for v in x], [statistics.mean(v) for v in y]
        line, *_ = axes.errorbar(*middles, **errors, marker="osD^vPX*"[number % 8], capsize=2, label=method)
        for row, point in zip(of, zip(*middles, strict=True), strict=True):
            if strength := row.partition(", strength ")[2]:
                place = (6, 6 if number % 2 else -12)
                colour = line.get_color()
                axes.annotate(strength, point, textcoords="offset points", xytext=place, fontsize=8, color=colour)
    axes.set_xlabel(f"{across} (class agreement when learned)" if not comparison.preset.error else across)
    axes.set_ylabel(f"{up} (class agreement on old tasks, at the end)" if not comparison.preset.error else up)
    axes.margins(0.15)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _method(row: str) -> str:
    """Without its strength, and its parts in the order of published ones."""
    return "+".join(sorted(row.partition(", strength ")[0].split("+"), key=lambda part: part not in PENALTIES))
