from __future__ import annotations

import math
from pathlib import Path

import pytest

from cl_diffusion.metrics import ContinualMatrix
from cl_diffusion.metrics.continual_file import write_matrices


def test_pandas_reads_the_matrices_in_one_line(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    loss, agreement = ContinualMatrix("denoising_loss", False), ContinualMatrix("class_agreement", True)
    values = {(1, 1): 0.1 + 0.2, (2, 1): 1e-17, (2, 2): math.nan}
    for (after, task), value in values.items():
        loss.record(after, task, value)
    agreement.record(1, 1, 1.0)
    write_matrices(tmp_path / "continual.csv", [loss, agreement])

    table = pandas.read_csv(tmp_path / "continual.csv")
    assert [str(table[column].dtype) for column in ("after", "task", "value")] == ["int64", "int64", "float64"]
    matrix = table[table.metric == "denoising_loss"].pivot(index="after", columns="task", values="value")
    assert (list(matrix.index), list(matrix.columns)) == ([1, 2], [1, 2])
    for (after, task), value in values.items():
        found = float(matrix.loc[after, task])
        assert found == pytest.approx(value, rel=1e-15, abs=0, nan_ok=True)
