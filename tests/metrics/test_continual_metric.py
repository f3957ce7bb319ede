from __future__ import annotations

import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  # before a process group is there; see tests/fisher/test_processes.py
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.regression import MeanSquaredError

from cl_diffusion.metrics import ContinualMetric

ROWS = [[1.0], [0.5, 0.9], [0.25, 0.6, 0.8]]
"""Accuracies after each task, on each task so far."""
EXPECTED = {
    "average": (0.25 + 0.6 + 0.8) / 3,
    "forgetting": (0.75 + 0.3 + 0) / 3,
    "backward_transfer": -(0.75 + 0.3) / 2,
}


def samples(accuracy: float) -> tuple[Tensor, Tensor]:
    """Twenty predictions of two classes, and the classes: so many are right."""
    target = torch.arange(20) % 2
    right = torch.arange(20) < round(20 * accuracy)
    return torch.where(right, target, 1 - target), target


def accuracy(num_tasks: int = 3) -> ContinualMetric:
    return ContinualMetric(MulticlassAccuracy(2, average="micro"), num_tasks)


def learn(metric: ContinualMetric, rows: list[list[float]]) -> ContinualMetric:
    for row in rows:
        for task, value in enumerate(row, 1):
            predictions, target = samples(value)
            for part in range(0, 20, 7):
                metric.update(predictions[part : part + 7], target[part : part + 7], task=task)
        metric.end_task()
    return metric


def figures(metric: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_figures_are_those_computed_by_hand() -> None:
    metric = learn(accuracy(), ROWS)
    assert figures(metric) == pytest.approx(EXPECTED)
    assert metric.matrix.entries == pytest.approx(
        {(after, task): value for after, row in enumerate(ROWS, 1) for task, value in enumerate(row, 1)}
    )


def test_of_a_metric_that_should_fall_forgetting_is_its_rise() -> None:
    metric = ContinualMetric(MeanSquaredError(), 2)
    for row in ([1.0], [3.0, 2.0]):
        for task, value in enumerate(row, 1):
            metric.update(torch.full((5,), math.sqrt(value)), torch.zeros(5), task=task)
        metric.end_task()
    assert figures(metric) == pytest.approx({"average": 2.5, "forgetting": 1.0, "backward_transfer": -2.0})


def test_tasks_that_are_learned_together_are_one_row() -> None:
    metric = accuracy()
    for task in (1, 2, 3):
        metric.update(*samples(0.9), task=task)
    metric.end_task(3)
    assert figures(metric) == pytest.approx({"average": 0.9, "forgetting": 0, "backward_transfer": 0})


def test_a_value_that_is_not_a_number_is_kept_as_one() -> None:
    metric = ContinualMetric(MeanMetric(nan_strategy="disable"), 1, higher_is_better=True)
    metric.update(torch.tensor(math.nan), task=1)
    metric.end_task()
    assert math.isnan(figures(metric)["average"])


def test_forward_gives_the_metric_of_the_batch_and_counts_it() -> None:
    metric = accuracy(1)
    assert float(metric(*samples(0.5), task=1)) == 0.5
    assert float(metric(*samples(1.0), task=1)) == 1.0
    metric.end_task()
    assert figures(metric)["average"] == 0.75


def test_copies_go_on_from_where_they_were_taken() -> None:
    whole, metric = learn(accuracy(), ROWS), learn(accuracy(), ROWS[:2])
    restored = accuracy()
    restored.load_state_dict(metric.state_dict())
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric)), restored):
        assert figures(learn(copy, ROWS[2:])) == figures(whole)
    assert len(metric.matrix.entries) == 3


def test_a_reset_forgets_all() -> None:
    metric = learn(accuracy(), ROWS)
    metric.update(*samples(0.0), task=2)
    metric.reset()
    with pytest.raises(ValueError, match="no entry yet"):
        metric.compute()
    assert figures(learn(metric, ROWS)) == pytest.approx(EXPECTED)


def test_samples_in_half_precision_do_not_make_the_matrix_so() -> None:
    metric = ContinualMetric(MeanSquaredError(), 1).half()
    metric.update(torch.full((3,), 2.0).half(), torch.zeros(3).half(), task=1)
    metric.end_task()
    assert metric.compute()["average"].dtype == torch.float32
    assert figures(metric)["average"] == 4.0


def test_in_a_collection_each_metric_has_its_own_matrix() -> None:
    top = ContinualMetric(MulticlassAccuracy(2, average="micro"), 2)
    error = ContinualMetric(MeanSquaredError(), 2)
    metrics = MetricCollection({"accuracy": top, "error": error})
    for row in ROWS[:2]:
        for task, value in enumerate(row, 1):
            metrics.update(*samples(value), task=task)
        for metric in metrics.values(copy_state=False):
            metric.end_task()
    computed = metrics.compute()
    assert float(computed["accuracy_average"]) == pytest.approx(0.7)
    assert float(computed["error_average"]) == pytest.approx(0.3)
    assert float(computed["accuracy_forgetting"]) == float(computed["error_forgetting"]) == pytest.approx(0.25)


def test_what_cannot_be_measured_is_refused() -> None:
    base = MulticlassAccuracy(2)
    with pytest.raises(ValueError, match="num_tasks=0"):
        ContinualMetric(base, 0)
    with pytest.raises(ValueError, match="MeanMetric does not say"):
        ContinualMetric(MeanMetric(), 2)
    metric = ContinualMetric(base, 2)
    for task in (0, 3, 1.5):
        with pytest.raises(ValueError, match="tasks are counted from 1"):
            metric.update(*samples(1.0), task=task)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no task was measured after task 1"):
        metric.end_task()
    with pytest.raises(ValueError, match="no entry yet"):
        metric.compute()
    learn(metric, ROWS[:2])
    metric.update(*samples(1.0), task=1)
    with pytest.raises(ValueError, match="task=3; expected 1 to 2"):
        metric.end_task()


def test_only_one_metric_of_a_known_direction_is_taken() -> None:
    base: Any
    for base in (MetricCollection([MulticlassAccuracy(2)]), torch.nn.Linear(1, 1), "accuracy"):
        with pytest.raises(ValueError, match=f"base={type(base).__name__}; expected one torchmetrics.Metric"):
            ContinualMetric(base, 2)
    direction: Any
    for direction in ("lower", 0, 1.0):
        with pytest.raises(ValueError, match=f"higher_is_better={direction!r}; expected True, False or None"):
            ContinualMetric(MeanMetric(), 2, direction)


@pytest.mark.parametrize(("first", "missing"), [([2], [1]), ([3], [1, 2]), ([2, 3], [1])], ids=str)
def test_a_row_without_an_old_task_is_refused_until_that_is_measured(first: list[int], missing: list[int]) -> None:
    metric = learn(accuracy(), ROWS[:1])
    for task in first:
        metric.update(*samples(0.5), task=task)
    with pytest.raises(ValueError, match=f"after task 2 all .* of them {re.escape(str(missing))} were not"):
        metric.end_task()
    for task in missing:
        metric.update(*samples(1.0), task=task)
    metric.end_task()
    assert figures(metric)["average"] == (0.75 if 2 in first else 1.0)
    metric.update(*samples(0.0), task=2)  # once more, into the same row
    metric.end_task(2)
    assert figures(metric)["average"] == 0.5


def test_the_matrix_of_another_number_of_tasks_is_not_loaded() -> None:
    metric = accuracy(3)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="values is a matrix of 2 tasks; expected 3"):
            metric.load_state_dict(learn(accuracy(2), ROWS[:2]).state_dict(), strict=strict)
    assert figures(learn(metric, ROWS)) == pytest.approx(EXPECTED)


def test_a_metric_of_many_numbers_is_refused_and_nothing_of_the_row_is_lost() -> None:
    many: Metric = MulticlassConfusionMatrix(2)
    metric = ContinualMetric(many, 1, higher_is_better=True)
    metric.update(*samples(0.5), task=1)
    with pytest.raises(ValueError, match="expected a metric of one number"):
        metric.end_task()
    assert int(metric.updates[0]) == 1


def _worker(rank: int, folder: str) -> None:
    """Each has every other sample; the first task's are with one process alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    warnings.simplefilter("ignore")  # the base metric's, that it was not updated in one process
    metric = accuracy()
    for row in ROWS:
        for task, value in enumerate(row, 1):
            predictions, target = samples(value)
            if task > 1:
                metric.update(predictions[rank::2], target[rank::2], task=task)
            elif rank == 0:
                metric.update(predictions, target, task=task)
        metric.end_task()
    torch.save((figures(metric), metric.state_dict(), metric.matrix.entries), f"{folder}/{rank}.pt")
    alone = metric.matrix
    with metric.sync_context():  # by the reductions that the states declare
        assert (metric.matrix, int(metric.last)) == (alone, 3)
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    (first, state, entries), (second, other, others) = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert first == second == pytest.approx(EXPECTED)
    assert entries == others == pytest.approx(learn(accuracy(), ROWS).matrix.entries)
    torch.testing.assert_close(state, other, rtol=0, atol=0, equal_nan=True)
