"""What callbacks and data know of tasks, so that neither need know the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class ReplayBatch(NamedTuple):
    """What a step sees where old tasks are replayed: a batch of the current task, and beside it one of old ones."""

    current: Any
    replay: Any

    def together(self) -> Any:
        """One batch of both: images, or a tuple of images and labels, the current ones first."""
        if isinstance(self.current, Tensor):
            return torch.cat([self.current, self.replay])
        return tuple(torch.cat(parts) for parts in zip(self.current, self.replay, strict=True))


@runtime_checkable
class TaskStream(Protocol):
    """A data module that serves an ordered list of tasks within one ``fit``.

    Tasks are counted from 0 here; files and tables that people read count from 1.
    """

    @property
    def num_tasks(self) -> int:
        """How many tasks the stream holds."""
        ...

    def task_at(self, epoch: int) -> int:
        """The task that is trained in this epoch; ``num_tasks`` past the last epoch of the stream."""
        ...

    def importance_dataloader(self, task: int | None = None) -> Iterable[Any]:
        """The task's own training samples, each once, without replay; this process's share of them.

        ``None`` is the current task. Batches are ``KeyedBatch`` where the samples have indices.
        """
        ...

    def reference_dataloader(self, task: int) -> Iterable[Any]:
        """The task's own training samples, each once, in a fixed order; all of them on every process."""
        ...

    def evaluation_dataloader(self, task: int) -> Iterable[Any]:
        """The task's held-out samples, each once, in a fixed order; all of them on every process."""
        ...


@runtime_checkable
class ReplayStream(TaskStream, Protocol):
    """A ``TaskStream`` whose batches are ``ReplayBatch`` from the second task on."""

    @property
    def replay(self) -> Any:
        """Whatever gives the images of old tasks."""
        ...
