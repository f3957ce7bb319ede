"""Which samples an importance is estimated on: the task's own, or for a control another's, or none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cl_diffusion.callbacks.batches import training_batches
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.diffusion.controls import pure_noise
from cl_diffusion.fisher.population import Draw


class TaskSamples(ABC):
    """The samples of a task's importance, and how their random draws are made."""

    @abstractmethod
    def batches(self, trainer: Trainer, task: int) -> Iterable[Any]:
        """Those of a task, each once; this process's share."""

    @abstractmethod
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse, before a task is trained, a project that has no such samples."""

    def draw(self, module: LightningModule) -> Draw | None:
        """``draw(batch, keys) -> batch``, the module's own if it has one."""
        own: Draw | None = getattr(module, "draw", None)
        return own

    def describe(self) -> dict[str, str]:
        """What is not the task's own, as a field of an operator's identity."""
        return {}


class OwnSamples(TaskSamples):
    """The task's own training samples, without replay."""

    @override
    def batches(self, trainer: Trainer, task: int) -> Iterable[Any]:
        stream = task_stream(trainer)
        return training_batches(trainer) if stream is None else stream.importance_dataloader(task)

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing to refuse."""


class OtherTask(TaskSamples):
    """Another task's samples, at the weights of this one: does it matter for a penalty whose task it remembers?

    Args:
        offset: so many tasks further on, from the last on to the first; 1 is the next, yet to be learned.

    Raises:
        ValueError: ``offset`` is 0.
    """

    def __init__(self, offset: int = 1) -> None:
        if offset == 0:
            raise ValueError("offset=0 is the task itself; expected the number of tasks to another")
        self.offset = offset

    @override
    def batches(self, trainer: Trainer, task: int) -> Iterable[Any]:
        stream = task_stream(trainer)
        assert stream is not None  # refused by check
        return stream.importance_dataloader((task + self.offset) % stream.num_tasks)

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise a ``TypeError`` without a ``TaskStream``, a ``ValueError`` where the other task is the task itself."""
        stream = task_stream(trainer)
        if stream is None:
            raise TypeError("OtherTask needs a data module that is a TaskStream; there is no other task to ask for")
        if self.offset % stream.num_tasks == 0:
            raise ValueError(f"offset={self.offset} of {stream.num_tasks} tasks is the task itself; give another")

    @override
    def describe(self) -> dict[str, str]:
        return {"samples_of": f"the task {self.offset:+d}"}


class PureNoise(OwnSamples):
    """As many samples of pure noise, with the task's labels: what a direction is without any data.

    The input is ``N(0, I)`` at every timestep, and the loss as ever.
    """

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise a ``TypeError`` where the module has no ``draw``."""
        if not callable(getattr(module, "draw", None)):
            raise TypeError(
                f"PureNoise replaces images before noise is added, and {type(module).__name__} has no "
                "`draw(batch, keys)`, by which it would be known where that happens"
            )

    @override
    def draw(self, module: LightningModule) -> Draw:
        own: Any = module.draw

        def drawn(batch: Any, keys: Tensor) -> Any:
            return own(pure_noise(batch, keys), keys)

        return drawn

    @override
    def describe(self) -> dict[str, str]:
        return {"samples_of": "pure noise"}
