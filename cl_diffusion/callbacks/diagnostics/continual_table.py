"""The continual matrices as a table to read, and what they were measured with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.whole_files import written_whole


def write_yardstick(path: Path, yardstick: Mapping[str, Any]) -> None:
    """What the figures of ``continual.csv`` were measured with, as JSON."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(yardstick, indent=1) + "\n")


def print_table(matrices: Collection[ContinualMatrix], title: str) -> None:
    """For each task and metric: now, and in brackets when the task was learned; below, averages and forgetting.

    What is of one band (``denoising_loss/low``) is left to the file.
    """
    matrices = [matrix for matrix in matrices if "/" not in matrix.name]
    table = Table(title=title, caption="now (when it was learned)")
    table.add_column("task")
    for matrix in matrices:
        table.add_column(f"{matrix.name.replace('_', ' ')} {'↑' if matrix.higher_is_better else '↓'}", justify="right")
    after = max(matrix.last for matrix in matrices)
    for task in range(1, after + 1):
        table.add_row(str(task), *(_cell(matrix, task) for matrix in matrices))
    table.add_section()
    table.add_row("average", *(f"{matrix.average():.3g}" for matrix in matrices))
    table.add_row("forgetting", *(f"{matrix.forgetting():.3g}" for matrix in matrices))
    rich.get_console().print(table)


def _cell(matrix: ContinualMatrix, task: int) -> str:
    return f"{matrix.entries[matrix.last, task]:.3g} ({matrix.learned(task):.3g})"
