"""Which task is trained in which epoch of one fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning.pytorch import Trainer

from cl_diffusion.arguments import is_whole


@dataclass(frozen=True)
class TaskSchedule:
    """The epochs of each task, one after the other.

    Args:
        epochs: ``epochs[k]`` epochs for task ``k``.
        joint: the last task is trained on everything, for the mean of ``epochs``; no other task has an epoch.
    """

    epochs: tuple[int, ...]
    joint: bool = False

    @classmethod
    def of(cls, num_tasks: int, epochs_per_task: int | Sequence[int], joint: bool = False) -> TaskSchedule:
        """One number of epochs for all tasks, or one each.

        Raises:
            ValueError: if a list is not one entry a task, or a task gets no epoch.
        """
        if not isinstance(epochs_per_task, (int, Sequence)):
            raise ValueError(f"epochs_per_task={epochs_per_task!r}: expected a number of epochs, or one for each task.")
        epochs = (epochs_per_task,) * num_tasks if isinstance(epochs_per_task, int) else tuple(epochs_per_task)
        if len(epochs) != num_tasks:
            raise ValueError(f"epochs_per_task={epochs_per_task}: expected one entry for each of {num_tasks} tasks.")
        return cls(epochs, joint)

    def __post_init__(self) -> None:
        if not self.epochs or not all(is_whole(epochs, 1) for epochs in self.epochs):
            raise ValueError(f"epochs_per_task={list(self.epochs)}: expected at least 1 for each task, whole numbers.")

    @property
    def num_epochs(self) -> int:
        """How many epochs the whole stream takes; a joint one shows every sample as often as the tasks would."""
        return round(sum(self.epochs) / len(self.epochs)) if self.joint else sum(self.epochs)

    def task_at(self, epoch: int) -> int:
        """The task that is trained in this epoch; the number of tasks past the last epoch."""
        if self.joint:
            return len(self.epochs) - (epoch < self.num_epochs)
        return bisect_right(list(accumulate(self.epochs)), epoch)

    def check(self, trainer: Trainer) -> None:
        """Refuses a Trainer that would not follow the schedule; one task, or a ``fast_dev_run``, has nothing to follow.

        Raises:
            ValueError: if ``reload_dataloaders_every_n_epochs`` is not 1, or ``max_epochs`` is neither the stream's
                nor -1 with ``max_steps`` as the limit.
        """
        if len(self.epochs) == 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if reload != 1 and not self.joint:
            raise ValueError(
                f"reload_dataloaders_every_n_epochs={reload}: expected 1, because a stream of {len(self.epochs)} tasks "
                "changes its data between epochs. Set Trainer(reload_dataloaders_every_n_epochs=1)."
            )
        if trainer.max_epochs not in (self.num_epochs, -1) or (trainer.max_epochs == -1 and trainer.max_steps == -1):
            raise ValueError(
                f"max_epochs={trainer.max_epochs} of the Trainer, but the stream takes {self.num_epochs}: "
                f"epochs_per_task={list(self.epochs)}. Set Trainer(max_epochs={self.num_epochs}), or epochs_per_task; "
                "max_steps may end it earlier."
            )

    def check_epoch(self, epoch: int, trainer: Trainer) -> None:
        """Refuses an epoch past the end of a stream that ``max_steps`` alone was to limit."""
        if len(self.epochs) > 1 and epoch >= self.num_epochs and trainer.max_epochs == -1:
            raise ValueError(
                f"max_epochs=-1: epoch {epoch} is past the {self.num_epochs} of the stream, and max_steps="
                f"{trainer.max_steps} is not reached. Set Trainer(max_epochs={self.num_epochs})."
            )
