from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.metrics import ContinualMatrix


def matrix(rows: list[list[float]], higher_is_better: bool) -> ContinualMatrix:
    filled = ContinualMatrix("quality", higher_is_better)
    for after, row in enumerate(rows, 1):
        for task, value in enumerate(row, 1):
            filled.record(after, task, value)
    return filled


def test_a_worked_example() -> None:
    fid = matrix([[10.0], [40.0, 12.0], [100.0, 60.0, 8.0]], higher_is_better=False)
    assert fid.average() == pytest.approx((100 + 60 + 8) / 3)
    assert fid.forgetting() == pytest.approx((90 + 48 + 0) / 3)
    assert fid.backward_transfer() == pytest.approx(-(90 + 48) / 2)


@given(st.lists(st.floats(-10, 10), min_size=6, max_size=6))
def test_the_direction_of_a_metric_changes_no_sign_of_forgetting(values: list[float]) -> None:
    rows = [values[:1], values[1:3], values[3:6]]
    lower = matrix(rows, higher_is_better=False)
    higher = matrix([[-value for value in row] for row in rows], higher_is_better=True)
    assert higher.forgetting() == pytest.approx(lower.forgetting())
    assert higher.backward_transfer() == pytest.approx(lower.backward_transfer())


def test_nothing_is_forgotten_where_nothing_changed() -> None:
    kept = matrix([[0.9], [0.9, 0.8]], higher_is_better=True)
    assert kept.forgetting() == 0
    assert kept.backward_transfer() == 0


def test_joint_training_learns_all_tasks_at_the_end_and_forgets_none() -> None:
    joint = ContinualMatrix("quality", True)
    for task in (1, 2, 3):
        joint.record(3, task, 0.9)
    assert joint.average() == pytest.approx(0.9)
    assert joint.forgetting() == 0


def test_one_task_has_no_past() -> None:
    assert math.isnan(matrix([[1.0]], True).backward_transfer())


def test_bad_counts_and_an_empty_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        ContinualMatrix("quality", True).record(1, 0, 1.0)
    with pytest.raises(ValueError, match="no entry yet"):
        ContinualMatrix("quality", True).average()


def test_a_row_of_later_tasks_alone_has_no_figures() -> None:
    ahead = matrix([[0.9]], higher_is_better=True)
    ahead.record(2, 3, 0.5)
    for figure in (ahead.average, ahead.forgetting, ahead.backward_transfer, ahead.retention, ahead.plasticity):
        with pytest.raises(ValueError, match="'.*' after task 2 has later tasks alone"):
            figure()
