"""A module whose averaged weights are of one task."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from typing_extensions import override

from cl_diffusion.averaged_weights import restart_average
from cl_diffusion.stream import TaskStream


class FreshAverages(LightningModule):
    """Averages of the weights (Lightning's ``WeightAveraging``) start anew at the first step of each task of a stream.

    What of an older task is left in the average alone would pass for memory. By then the teacher and the replay of the
    task are there, which are of the average before. Without a ``TaskStream`` nothing is touched.
    """

    def __init__(self) -> None:
        super().__init__()
        self._averaged: int | None = None  # the task that is averaged

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        stream = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(stream, TaskStream):
            return
        task = stream.task_at(self.trainer.current_epoch)
        if task != self._averaged:
            restart_average(self.trainer)
            self._averaged = task

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["averaged_task"] = self._averaged

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._averaged = checkpoint.get("averaged_task")
