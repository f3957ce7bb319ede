"""The loss of each task's held-out samples, on the same draws whenever it is measured."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from cl_diffusion.keys import KeyedBatch, derive_keys

_SEED = 0


class HeldOutLosses(LightningModule):
    """Logs ``val_loss/task_k`` and ``test_loss/task_k``: means over samples, a loader a task, tasks counted from 1.

    Batches are ``KeyedBatch``; a sample's timestep and noise depend on its index alone.

    Raises:
        TypeError: an evaluation batch has no indices.
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses_by_task: dict[int, MeanMetric] = {}

    @abstractmethod
    def draw(self, batch: Any, keys: Tensor | None = None) -> Any:
        """The batch with its random draws, a function of ``keys``, one a sample."""

    @abstractmethod
    def per_sample_loss(self, batch: Any) -> Tensor:
        """``(B,)``, of what ``draw`` returns."""

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Task ``dataloader_idx``'s held-out samples."""
        self._add_held_out(batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_held_out("val_loss")

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Task ``dataloader_idx``'s held-out samples."""
        self._add_held_out(batch, dataloader_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_held_out("test_loss")

    def _add_held_out(self, batch: Any, task: int) -> None:
        if not isinstance(batch, KeyedBatch):
            raise TypeError(
                f"evaluation batches are {type(batch).__name__}; expected KeyedBatch(batch, indices), so that every "
                "evaluation uses the same noise"
            )
        losses = self.per_sample_loss(self.draw(batch.batch, derive_keys(_SEED, batch.indices)))
        self._losses_by_task.setdefault(task, MeanMetric().to(self.device)).update(losses)

    def _log_held_out(self, name: str) -> None:
        """Not from within the step: the number of tasks grows during a fit, and Lightning fixes a name's loader."""
        for task, mean in sorted(self._losses_by_task.items()):
            self.log(f"{name}/task_{task + 1}", mean.compute(), sync_dist=True)
        self._losses_by_task.clear()
