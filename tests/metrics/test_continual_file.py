from __future__ import annotations

import math
from pathlib import Path

import pytest

from cl_diffusion.metrics import ContinualMatrix
from cl_diffusion.metrics.continual_file import read_matrices, write_matrices


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


def test_a_metric_whose_direction_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "continual.csv"
    loss, accuracy = ContinualMatrix("denoising_loss/low", False), ContinualMatrix("MulticlassAccuracy", True)
    for matrix in (loss, accuracy):
        matrix.record(1, 1, 0.5)
    write_matrices(path, [loss])
    assert read_matrices(path) == {loss.name: loss}
    write_matrices(path, [loss, accuracy])
    with pytest.raises(
        ValueError, match=r"line 2: metric='MulticlassAccuracy', .*expected one of denoising_loss"
    ) as told:
        read_matrices(path)
    assert "columns" not in str(told.value)
