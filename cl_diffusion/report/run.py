"""What a run has written into its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_diffusion.metrics.continual_file import read_matrices
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.audit import Audit, audits
from cl_diffusion.report.run_files import log, mapping, readable, rows, samples

MARKS = ("config.yaml", "continual.csv", "metrics.csv", "plasticity.csv", "audit/after_task_*/audit.json")
"""A folder that holds one of these is a run."""


@dataclass(frozen=True)
class Run:
    """A run folder as it was read; what it does not hold is empty.

    Attributes:
        folder: of the run.
        name: to tell it from others.
        configuration: the resolved one, of ``config.yaml``.
        matrices: of ``continual.csv``, by metric.
        yardstick: what they were measured with.
        log: the rows of ``metrics.csv``, each with the figures that it has.
        samples: the pictures of generated images, by the number of tasks after which they were drawn.
        audits: of ``FisherAudit``, in the order of tasks.
        plasticity: of ``plasticity.csv``: task, layer, figure, value.
        timings: of ``timings.csv``: task, phase, seconds.
        record: of ``run.json``: commands, versions, times.
        notes: what could not be read to the end, in words.
    """

    folder: Path
    name: str
    configuration: Mapping[str, Any]
    matrices: Mapping[str, ContinualMatrix]
    yardstick: Mapping[str, Any]
    log: list[dict[str, float]]
    samples: dict[int, Path]
    audits: list[Audit]
    plasticity: list[tuple[int, str, str, float]]
    timings: list[tuple[int, str, float]]
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> Run:
        """Everything in a run folder.

        Raises:
            ValueError: the folder holds no run, or a file of it that is not as it was written: names it.
        """
        if not is_run(folder):
            raise ValueError(
                f"run={str(folder)!r} holds no run (none of {', '.join(MARKS)}); give the folders that "
                "`cl-diffusion fit --run FOLDER` has written, or a folder that holds such"
            )
        logged, notes = log(folder / "metrics.csv")
        return cls(
            folder,
            name or folder.resolve().name,
            mapping(folder / "config.yaml"),
            _matrices(folder / "continual.csv"),
            mapping(folder / "yardstick.json"),
            logged,
            samples(folder / "samples"),
            audits(folder),
            [(int(t), layer, f, float(v)) for t, layer, f, v in rows(folder / "plasticity.csv", 4)],
            [(int(t), phase, float(s)) for t, phase, s in rows(folder / "timings.csv", 3)],
            mapping(folder / "run.json"),
            notes,
        )

    @property
    def tasks(self) -> int:
        """How many tasks were measured; 0 where none was."""
        return max((matrix.last for matrix in self.matrices.values()), default=0)

    @property
    def boundaries(self) -> list[float]:
        """The steps at which a task ended, as far as the log says."""
        ends = [row for row in self.log if any(key.startswith("continual/") for key in row)]
        return sorted({row["step"] for row in ends if "step" in row})

    @property
    def unfinished(self) -> bool:
        """Whether its newest session has not ended, as far as the record says: it goes on, or was killed."""
        sessions = self.record.get("sessions") or [{}]
        return "started" in sessions[-1] and not sessions[-1].get("ended")

    def series(self, figure: str) -> tuple[list[float], list[float]]:
        """Steps and values of a logged figure; a step that was trained twice is there once, with its newest value."""
        found = {row["step"]: row[figure] for row in self.log if figure in row and "step" in row}
        return sorted(found), [found[step] for step in sorted(found)]

    @property
    def figures(self) -> list[str]:
        """The names of what was logged."""
        return sorted({key for row in self.log for key in row} - {"step", "epoch"})


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run writes."""
    return any(next(folder.glob(mark), None) is not None for mark in MARKS)


def runs_below(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else all runs in it, in the order of their names; links are followed.

    What lies within a run, such as another logger's folder, is a part of it.

    Raises:
        ValueError: there is none.
    """
    found = sorted(_runs(folder, set()), key=_natural)
    if not found:
        Run.read(folder)  # says so
    return found


def _runs(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if (real := folder.resolve()) in seen or not folder.is_dir():
        return
    seen.add(real)
    if is_run(folder):
        yield folder
        return
    for child in folder.iterdir():
        yield from _runs(child, seen)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _matrices(path: Path) -> Mapping[str, ContinualMatrix]:
    if not path.is_file():
        return {}
    with readable(path):
        return read_matrices(path)
