"""An optimizer that begins each task anew."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from cl_diffusion.callbacks.task import TaskCallback


class ResetOptimizer(TaskCallback):
    """Clears what the optimizers keep for each parameter (Adam's moments and step) when a task begins.

    That is an optimizer created again, but for learning rates, which belong to the scheduler. Without it a task begins
    with the moments of the one before.
    """

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        if task > 0:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
