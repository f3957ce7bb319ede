"""A checkpoint after each task."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from cl_diffusion.callbacks.task import TaskCallback


class TaskCheckpoint(TaskCallback, Checkpoint):
    """Writes ``after_task_K.ckpt`` at each boundary, and ``last.ckpt`` there and every few epochs.

    Lightning calls checkpoint callbacks after all others, so the file of a boundary holds what they keep of the task.

    Args:
        dirpath: by default ``checkpoints`` in the run's folder.
        every_n_epochs: how often ``last.ckpt`` is written within a task; None: at boundaries alone.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).

    Raises:
        ValueError: ``every_n_epochs`` is not positive.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_epochs: int | None = None, epochs_per_task: int | None = None
    ) -> None:
        super().__init__(epochs_per_task)
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs!r}; expected a positive number of epochs, or None")
        self.dirpath = dirpath
        self.every_n_epochs = every_n_epochs

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._save(trainer, f"after_task_{task + 1}.ckpt")
        self._save(trainer, "last.ckpt")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        within_a_task = self._running is not None
        if within_a_task and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        folder = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / name, weights_only=False)  # False: the optimizer and callbacks too
