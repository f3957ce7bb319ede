"""``continual.csv``: the continual matrices of a run as a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.metrics.generation_quality import HIGHER_IS_BETTER, higher_is_better
from cl_diffusion.whole_files import write_rows

COLUMNS = ("metric", "after", "task", "value")


def write_matrices(path: Path, matrices: Iterable[ContinualMatrix]) -> None:
    """All entries as ``metric,after,task,value``, tasks counted from 1; the file is replaced in one move."""
    rows = [(after, m.name, task, value) for m in matrices for (after, task), value in m.entries.items()]
    write_rows(path, COLUMNS, ((metric, after, task, repr(value)) for after, metric, task, value in sorted(rows)))


def read_matrices(path: Path) -> dict[str, ContinualMatrix]:
    """What ``write_matrices`` has written, by metric.

    Raises:
        ValueError: the file and line that is no entry, or whose metric is none of ours, so that its direction is not
            known.
    """
    matrices: dict[str, ContinualMatrix] = {}
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            _require_known(row.get("metric"), f"{path}, line {line}")
            try:
                name, after, task, value = (row[column] for column in COLUMNS)
                matrix = matrices.setdefault(name, ContinualMatrix(name, higher_is_better(name)))
                matrix.record(int(after), int(task), float(value))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {line}: {dict(row)!r} is no entry of a continual matrix ({error!r}); expected the "
                    f"columns {','.join(COLUMNS)} as a fit writes them"
                ) from error
    return matrices


def _require_known(metric: str | None, place: str) -> None:
    if metric is not None and metric.partition("/")[0] not in HIGHER_IS_BETTER:
        raise ValueError(
            f"{place}: metric={metric!r}, and whether more of it is better is not known; expected one of "
            f"{', '.join(HIGHER_IS_BETTER)}"
        )
