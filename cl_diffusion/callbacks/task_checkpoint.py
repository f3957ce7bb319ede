"""A checkpoint after each task, and within."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.checkpoint_files import replace_file
from cl_diffusion.phases import phase

CHECKPOINT = "checkpoint"


class TaskCheckpoint(TaskCallback, Checkpoint):
    """Writes ``after_task_K.ckpt`` at each boundary, and ``last.ckpt`` there and every few epochs or steps.

    Lightning calls checkpoint callbacks after all others, so the file of a boundary holds what they keep of the task. A
    file appears under its name when it is whole: a fit that is killed while it writes leaves the one before.

    Args:
        dirpath: by default ``checkpoints`` in the run's folder.
        every_n_epochs: how often ``last.ckpt`` is written within a task; None: at boundaries alone.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        every_n_steps: how often ``last.ckpt`` is written within an epoch, in optimizer steps; None: not at all. After
            an epoch's last step there is none: from there Lightning resumes without the epoch's end.

    Raises:
        ValueError: ``every_n_epochs`` or ``every_n_steps`` is not positive.
    """

    boundary_phase = CHECKPOINT

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_epochs: int | None = None,
        epochs_per_task: int | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(epochs_per_task)
        for name, value in {"epochs": every_n_epochs, "steps": every_n_steps}.items():
            if value is not None and value < 1:
                raise ValueError(f"every_n_{name}={value!r}; expected a positive number of {name}, or None")
        self.dirpath = dirpath
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._step = 0
        self._saved = 0  # the step that was saved last

    @property
    @override
    def needs_finite_weights(self) -> bool:
        return True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        refuse_folders(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved = trainer.global_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        enough = self.every_n_steps is not None and trainer.global_step - self._saved >= self.every_n_steps
        if enough and between_steps(trainer, self._step):
            self.save(trainer)

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        after = f"after_task_{task + 1}.ckpt"
        self.save(trainer, after)
        folder = checkpoint_folder(trainer, self.dirpath)
        if trainer.is_global_zero:
            part = folder / "last.ckpt.part"
            shutil.copyfile(folder / after, part)
            replace_file(part, folder / "last.ckpt")
        trainer.strategy.barrier("TaskCheckpoint")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        within_a_task = self._running is not None
        if within_a_task and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.save(trainer)

    def save(self, trainer: Trainer, name: str = "last.ckpt") -> None:
        """Write a checkpoint into the folder; every process takes part."""
        write_checkpoint(trainer, checkpoint_folder(trainer, self.dirpath) / name)
        self._saved = trainer.global_step


def refuse_folders(trainer: Trainer, callback: str) -> None:
    """Refuse a strategy that writes a checkpoint as a folder of shards, which is neither replaced at once nor whole.

    Raises:
        ValueError: names the argument of the strategy.
    """
    strategy: Any = trainer.strategy
    folders = {
        "save_distributed_checkpoint=False": getattr(strategy, "_save_distributed_checkpoint", False),
        "state_dict_type='full'": getattr(strategy, "_state_dict_type", None) == "sharded",
    }
    for argument in (argument for argument, asked in folders.items() if asked):
        raise ValueError(
            f"strategy={type(strategy).__name__} writes checkpoints as folders, one file a process, and {callback} "
            f"replaces one whole file by another; give the strategy {argument}"
        )


def checkpoint_folder(trainer: Trainer, dirpath: str | None = None) -> Path:
    """Where checkpoints of a run are, by default; a broadcast: every process takes part."""
    return Path(dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")


def write_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint of everything; every process takes part."""
    part = path.with_name(f"{path.name}.part")
    with phase(trainer, CHECKPOINT):
        trainer.save_checkpoint(part, weights_only=False)  # False: the optimizer and callbacks too
        if trainer.is_global_zero:
            replace_file(part, path)
        trainer.strategy.barrier("write_checkpoint")


def between_steps(trainer: Trainer, step_before: int) -> bool:
    """Whether a fit can go on from the end of this batch: gradients are not half accumulated, nor the epoch over.

    Args:
        trainer: that fits.
        step_before: its ``global_step`` when the batch began.
    """
    return trainer.global_step > step_before and not trainer.is_last_batch
