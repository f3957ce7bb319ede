"""What methods have measured, each on several seeds, as a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from presets import PENALTIES, Preset
from tables import interval, standard_error, table

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures import Point, draw_front
from cl_diffusion.report.figures.canvas import styled
from cl_diffusion.report.run import Run

Rows = Mapping[str, Mapping[int, Run]]
"""By row of the table, and seed."""

Figure = Callable[[Run], float]


def old_forgetting(matrix: ContinualMatrix) -> float:
    """How much worse the tasks before the last have become, their mean."""
    return -matrix.backward_transfer() + 0.0


def of(metric: str, figure: Callable[[ContinualMatrix], float]) -> Figure:
    """A figure of the matrix of one metric."""
    return lambda run: figure(run.matrices[metric])


class MethodsOnSeeds:
    """Rows of a table, all measured with one yardstick.

    Raises:
        ValueError: a run has measured nothing; runs were judged by different classifiers, or ended after different
            numbers of tasks.
    """

    def __init__(self, rows: Rows, preset: Preset, against: str) -> None:
        self.rows, self.preset, self.against = rows, preset, against
        every = [run for of_row in rows.values() for run in of_row.values()]
        if idle := [str(run.folder) for run in every if not (run.matrices and run.yardstick)]:
            raise ValueError(
                f"{', '.join(idle)}: no continual.csv with its yardstick.json, so there is nothing to compare; keep "
                "ContinualMetrics among the callbacks"
            )
        judges = {run.yardstick["reference_classifier"] for run in every}
        if len(judges) > 1:
            raise ValueError(
                f"the runs were judged by {len(judges)} different reference classifiers (yardstick.json), so their "
                "figures do not compare: data or its split differ; run them anew into another --out"
            )
        if len(lasts := {run.matrices["denoising_loss"].last for run in every}) > 1:
            raise ValueError(f"the runs ended after {sorted(lasts)} tasks, so their figures do not compare")
        self.inception = all(run.yardstick["inception"] for run in every)
        self.accuracy = statistics.mean(run.yardstick["held_out_accuracy"] for run in every)

    @property
    def figures(self) -> dict[str, Figure]:
        """The columns, by title; a preset's published figures are of the first."""
        if self.preset.error:
            return {
                "old error": of("denoising_loss", ContinualMatrix.retention),
                "forgetting": of("denoising_loss", old_forgetting),
                "new error": of("denoising_loss", lambda losses: losses.entries[losses.last, losses.last]),
            }
        distance = "inception_distance" if self.inception else "frechet_distance"
        figures = {
            "AFID": of(distance, ContinualMatrix.average),
            "forgetting": of(distance, ContinualMatrix.forgetting),
            "class agreement": of("class_agreement", ContinualMatrix.average),
            "retention": of("class_agreement", ContinualMatrix.retention),
            "plasticity": of("class_agreement", ContinualMatrix.plasticity),
        }
        for band in self.preset.bands:
            figures[f"old, {band}"] = of(f"denoising_loss/{band}", old_forgetting)
            figures[f"new, {band}"] = of(f"denoising_loss/{band}", ContinualMatrix.plasticity)
        return figures

    def values(self, row: str, title: str) -> list[float]:
        """A figure on each seed."""
        return [self.figures[title](run) for run in self.rows[row].values()]

    def differences(self, row: str, title: str) -> list[float]:
        """From the row ``against``, on each seed that both have."""
        figure, others = self.figures[title], self.rows.get(self.against, {})
        own = self.rows[row]
        return [figure(own[seed]) - figure(others[seed]) for seed in own if seed in others and row != self.against]

    def published(self, row: str, title: str) -> float | None:
        """Of a row and figure, if it was."""
        known = dict(zip(self.figures, self.preset.published.get(_method(row), ()), strict=False))
        return known.get(title)

    def records(self) -> Iterator[dict[str, object]]:
        """A record a row and figure, for a CSV file."""
        for row, seeds in self.rows.items():
            for title in self.figures:
                values, differences = self.values(row, title), self.differences(row, title)
                yield {
                    "method": row,
                    "figure": title,
                    "seeds": len(seeds),
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
            line = [row, str(len(self.rows.get(row, {})))]
            for title in titles:
                line.append(interval(self.values(row, title)) if row in self.rows else "")
                if title in beside:
                    published = self.published(row, title)
                    line.append("" if published is None else f"{published:g}")
            lines.append(line)
        paired = [
            [row, *(interval(self.differences(row, title)) for title in titles)]
            for row in self.rows
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
        ran = {_method(row) for row in self.rows}
        return [*self.rows, *(row for row in self.preset.published if row not in ran)]


@styled
def draw(found: MethodsOnSeeds, path: Path, title: str) -> None:
    """Retention against plasticity, or errors; the strengths of one method are joined by a line."""
    across, up = ("new error", "old error") if found.preset.error else ("plasticity", "retention")
    methods: dict[str, list[tuple[float, Point]]] = {}
    for row in found.rows:
        x, y = (found.values(row, axis) for axis in (across, up))
        means = (statistics.mean(x), standard_error(x)), (statistics.mean(y), standard_error(y))
        method, _, strength = row.partition(", strength ")
        methods.setdefault(method, []).append((float(strength or 0), Point(*means, strength)))
    if not found.preset.error:
        across += " (class agreement when learned)"
        up += " (class agreement on old tasks, at the end)"
    points = {method: [point for _, point in sorted(every)] for method, every in methods.items()}
    figure = draw_front(points, across, up)
    figure.set_size_inches(7, 5)
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.savefig(path, dpi=150)


def _method(row: str) -> str:
    """Without its strength, and its parts in the order of published ones."""
    return "+".join(sorted(row.partition(", strength ")[0].split("+"), key=lambda part: part not in PENALTIES))
