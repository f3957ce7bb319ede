"""What a run has written into its folder."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_diffusion.metrics.continual_file import read_matrices
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.audit import Audit, audits

MARKS = ("config.yaml", "continual.csv", "metrics.csv", "plasticity.csv", "audit")
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
        log, notes = _log(folder / "metrics.csv")
        return cls(
            folder,
            name or folder.resolve().name,
            _mapping(folder / "config.yaml"),
            read_matrices(folder / "continual.csv") if (folder / "continual.csv").is_file() else {},
            _mapping(folder / "yardstick.json"),
            log,
            _samples(folder / "samples"),
            audits(folder),
            [(int(t), layer, f, float(v)) for t, layer, f, v in _rows(folder / "plasticity.csv", 4)],
            [(int(t), phase, float(s)) for t, phase, s in _rows(folder / "timings.csv", 3)],
            _mapping(folder / "run.json"),
            notes,
        )

    @property
    def tasks(self) -> int:
        """How many tasks were measured; 0 where none was."""
        return max((matrix.last for matrix in self.matrices.values()), default=0)

    @property
    def boundaries(self) -> list[float]:
        """The steps at which a task ended, as far as the log says."""
        return sorted({row["step"] for row in self.log if any(key.startswith("continual/") for key in row)})

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
    return any((folder / mark).exists() for mark in MARKS)


def runs_below(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else all runs in it, in the order of their names.

    Raises:
        ValueError: there is none.
    """
    if is_run(folder):
        return [folder]
    found = sorted({path.parent for mark in MARKS[:3] for path in folder.rglob(mark)}, key=_natural)
    if not found:
        Run.read(folder)  # says so
    return found


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _mapping(path: Path) -> Mapping[str, Any]:
    """Of JSON or YAML; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({_line(error)}); leave this run out, or restore the file") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds {type(read).__name__}, expected names and values; leave this run out")
    return read


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    """The rows below the head of a file that is replaced whole."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        for line, row in enumerate(csv.reader(file), 1):
            if line == 1:
                continue
            try:
                if len(row) != columns:
                    raise ValueError(f"{len(row)} columns, expected {columns}")
                int(row[0]), float(row[-1])
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {row!r} ({error}); leave this run out") from error
            yield row


def _log(path: Path) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """The rows, each without its empty entries. A fit that was killed leaves its last row cut off, or cells empty."""
    if not path.is_file():
        return [], ()
    rows, strange = [], 0
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = {key: _number(value) for key, value in row.items() if key and isinstance(value, str) and value}
            kept = {key: value for key, value in numbers.items() if value is not None}
            strange += len(kept) < len(numbers) or None in row or None in row.values()
            rows.append(kept)
    notes = (
        (f"{path.name}: {strange} row{'s' * (strange > 1)} not whole, as a killed run leaves them",) if strange else ()
    )
    return rows, notes


def _number(text: str) -> float | None:
    """None of what is no number; NaN stays NaN."""
    try:
        return float(text)
    except ValueError:
        return None if text.lower() not in ("true", "false") else math.nan


def _samples(folder: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"after_task_(\d+)\.png", path.name), path) for path in folder.glob("*.png"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))
