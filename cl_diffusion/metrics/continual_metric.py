"""Any torchmetric, measured on every task after every task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.metrics.continual_matrix import ContinualMatrix


class ContinualMetric(WrapperMetric):
    """``R[after, task]`` of a metric, and average, forgetting and backward transfer of it (``ContinualMatrix``).

    Tasks are counted from 1. After each of them, evaluate on all so far (and later ones where you like, which enter the
    matrix but no figure), then close the row::

        quality = ContinualMetric(MulticlassAccuracy(10), num_tasks=5)
        for after in range(1, 6):
            train(after)
            for task in range(1, after + 1):
                for x, y in held_out[task]:
                    quality.update(model(x), y, task=task)
            quality.end_task()
        quality.compute()  # {"average": ..., "forgetting": ..., "backward_transfer": ...}

    Where processes have a part of the samples each, all call ``end_task``: the metric is reduced over them as it
    declares, and they come to the same matrix. One that saw no sample of a task takes part all the same where states of
    ``base`` are sums or other tensors; where they are lists of samples, as of an AUROC without thresholds, each process
    needs some. The matrix is in the state_dict, the metric of the row that is not closed is not. ``reset`` forgets all
    rows.

    Args:
        base: of one number; copied for each task.
        num_tasks: how many tasks there are.
        higher_is_better: direction of the metric; None: what ``base`` says of itself.

    Raises:
        ValueError: ``base`` is no single metric, ``num_tasks`` is below 1, or the direction is not known.
    """

    values: Tensor  # (num_tasks, num_tasks), row by `after`
    measured: Tensor  # int64, likewise: 1 where there is a value
    updates: Tensor  # int64 (num_tasks,): of the row that is not closed, by this process
    last: Tensor  # int64: the newest task that was closed

    def __init__(self, base: Metric, num_tasks: int, higher_is_better: bool | None = None) -> None:
        super().__init__()
        if not isinstance(base, Metric):
            raise ValueError(
                f"base={type(base).__name__}; expected one torchmetrics.Metric, as MulticlassAccuracy(10); give "
                "each of several a ContinualMetric of its own"
            )
        if not (higher_is_better is None or isinstance(higher_is_better, bool)):
            raise ValueError(f"higher_is_better={higher_is_better!r}; expected True, False or None, what base says")
        if not is_whole(num_tasks, 1):
            raise ValueError(f"num_tasks={num_tasks!r}; expected a whole number of tasks, at least 1")
        direction = base.higher_is_better if higher_is_better is None else higher_is_better
        if direction is None:
            raise ValueError(f"higher_is_better=None, and {type(base).__name__} does not say: give True or False")
        self.num_tasks = num_tasks
        self.direction = bool(direction)
        self.name = type(base).__name__
        self.metrics = nn.ModuleList(base.clone() for _ in range(num_tasks))
        empty = torch.full((num_tasks, num_tasks), float("nan"))
        self.add_state("values", empty, dist_reduce_fx="max", persistent=True)  # the same in each process
        self.add_state("measured", torch.zeros_like(empty, dtype=torch.int64), dist_reduce_fx="max", persistent=True)
        self.add_state("updates", torch.zeros(num_tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("last", torch.tensor(0), dist_reduce_fx="max", persistent=True)

    @override
    def update(self, *args: Any, task: int, **kwargs: Any) -> None:
        """Samples of a task, as ``base.update`` takes them.

        Raises:
            ValueError: there is no such task.
        """
        self._of(task).update(*args, **kwargs)
        self.updates[task - 1] += 1

    @override
    def forward(self, *args: Any, task: int, **kwargs: Any) -> Any:
        """``update``, and the metric of these samples alone."""
        value = self._of(task)(*args, **kwargs)
        self.updates[task - 1] += 1
        return value

    def end_task(self, task: int | None = None) -> None:
        """Enter the tasks that were updated as the row of ``task``, by default the one after the newest closed.

        Raises:
            ValueError: ``task`` is not one, a task up to it was not updated, or the metric is not one number. What was
                updated is kept.
        """
        after = int(self.last) + 1 if task is None else task
        self._of(after)
        with self.sync_context():
            measured = self.updates.nonzero().flatten().tolist()
        if not measured:
            raise ValueError(f"no task was measured after task {after}; call update(..., task=...) before end_task()")
        missing = [index + 1 for index in range(after) if index not in measured and not self.measured[after - 1, index]]
        if missing:
            raise ValueError(
                f"after task {after} all tasks up to it are to be measured, and of them {missing} were not; call "
                "update(..., task=...) for each before end_task()"
            )
        row = {index: self._number(self.metrics[index]) for index in measured}
        for index, value in row.items():
            self.values[after - 1, index], self.measured[after - 1, index] = value, 1
            self.metrics[index].reset()
        self.updates.zero_()
        self.last.fill_(max(after, int(self.last)))

    @property
    def matrix(self) -> ContinualMatrix:
        """What is known so far."""
        matrix = ContinualMatrix(self.name, self.direction)
        for after, task in self.measured.nonzero().tolist():
            matrix.record(after + 1, task + 1, float(self.values[after, task]))
        return matrix

    @override
    def compute(self) -> dict[str, Tensor]:
        """``average``, ``forgetting`` and ``backward_transfer`` (NaN for a single task), scalars.

        Raises:
            ValueError: no task was closed.
        """
        matrix = self.matrix
        figures = {
            "average": matrix.average(),
            "forgetting": matrix.forgetting(),
            "backward_transfer": matrix.backward_transfer(),
        }
        return {name: self.values.new_tensor(value) for name, value in figures.items()}

    @override
    def reset(self) -> None:
        super().reset()
        for metric in self.metrics:
            metric.reset()  # type: ignore[operator]

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local: Any, strict: bool, *found: list[str]
    ) -> None:
        matrix = state_dict.get(f"{prefix}values")
        if isinstance(matrix, Tensor) and matrix.shape != self.values.shape:
            *_, errors = found
            errors.append(
                f"{prefix}values is a matrix of {len(matrix)} tasks; expected {self.num_tasks}: make the metric with "
                f"num_tasks={len(matrix)}, or load none"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local, strict, *found)

    def _of(self, task: int) -> Any:
        if not is_whole(task, 1) or task > self.num_tasks:
            raise ValueError(f"task={task!r}; expected 1 to {self.num_tasks}, tasks are counted from 1")
        return self.metrics[task - 1]

    def _number(self, metric: Any) -> float:
        value = metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"{self.name} computes {value!r}; expected a metric of one number, such as an average")
        return float(value)
