"""This project, from a LightningModule that knows nothing of it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import problem
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

# isort: split
# lines: every
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import cross_entropy


class Classifier(LightningModule):
    """Anybody's classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return problem.optimizer(self)

    # end
    # lines: ewc
    def per_sample_loss(self, batch: Any) -> Tensor:
        """What the Fisher is of."""
        return cross_entropy(self(batch[0]), batch[1], reduction="none")

    # end


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def train(job: problem.Job, model: nn.Module, stream: list[problem.Task], watch: problem.Watch) -> None:
    """A ``fit`` a task, or one for the whole stream where old tasks are replayed."""
    if job.method == "replay":
        replay(job, model, stream, watch)
        return
    regularizer = regularizer_of(job)
    if job.method in ("ewc", "mas"):
        regularizer.importance = watch.passes(regularizer.importance)
    classifier = distilled(job, model) if job.method == "lwf" else Classifier(model)
    callbacks = [] if regularizer is None else [regularizer]
    for task in stream:
        # lines: every
        trainer = Trainer(max_epochs=job.epochs, callbacks=callbacks, **QUIET)
        trainer.fit(classifier, task.loader())
        # end
        if job.method == "lwf":
            # lines: lwf
            classifier.freeze_teacher()
            # end
        watch.task_learned()


def regularizer_of(job: problem.Job) -> Any:
    """The callback."""
    if job.method == "ewc":
        # lines: ewc
        from cl_diffusion.callbacks import EWC
        from cl_diffusion.fisher import DiagonalFisher

        return EWC(DiagonalFisher(), strength=job.strength)
        # end
    if job.method == "si":
        # lines: si
        from cl_diffusion.callbacks import SynapticIntelligence

        return SynapticIntelligence(strength=job.strength)
        # end
    if job.method == "mas":
        # lines: mas
        from cl_diffusion.callbacks import MAS

        return MAS(strength=job.strength)
        # end
    return None


def distilled(job: problem.Job, model: nn.Module) -> Any:
    """The answers of the last task's network on the classes seen before, at temperature 2."""
    # lines: lwf
    from torch.nn.functional import kl_div

    from cl_diffusion import DistillationMixin

    class Distilled(DistillationMixin, Classifier):
        def __init__(self) -> None:
            super().__init__(model)
            self.set_up_distillation("sum", old_strength=job.strength)

        @property
        def student(self) -> nn.Module:
            return self.net

        def current_losses(self, current: Any, replay: Any) -> Tensor:
            return cross_entropy(self(current[0]), current[1], reduction="none")

        def old_losses(self, current: Any, replay: Any) -> Tensor | None:
            if self.teacher is None:
                return None
            seen = problem.CLASSES_PER_TASK * self.tasks_before
            answer, wanted = ((net(current[0])[:, :seen] / 2).log_softmax(1) for net in (self.net, self.teacher))
            return kl_div(answer, wanted, log_target=True, reduction="none").sum(1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.combined_loss(batch)

    return Distilled()
    # end


def replay(job: problem.Job, model: nn.Module, stream: list[problem.Task], watch: problem.Watch) -> None:
    """As many old images as new ones in each batch."""
    training = [(image / 2 + 0.5, int(label)) for image, label in ConcatDataset([task.training for task in stream])]

    # lines: replay
    from cl_diffusion import ReplayDataModule
    from cl_diffusion.callbacks import ResetOptimizer
    from cl_diffusion.data import ClassBalancedBuffer
    from cl_diffusion.stream import ReplayBatch

    class Replaying(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch.together() if isinstance(batch, ReplayBatch) else batch, batch_idx)

    data = ReplayDataModule(
        ClassBalancedBuffer(images=problem.MEMORY),
        dataset=training,
        classes_per_task=problem.CLASSES_PER_TASK,
        epochs_per_task=job.epochs,
        batch_size=problem.BATCH_SIZE,
        holdout=1e-3,
        seed=job.seed,
    )
    trainer = Trainer(
        max_epochs=data.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[ResetOptimizer(), Boundaries(job.epochs, watch)],
        **QUIET,
    )
    trainer.fit(Replaying(model), datamodule=data)
    # end


class Boundaries(Callback):
    """Measures between tasks."""

    def __init__(self, epochs: int, watch: problem.Watch) -> None:
        self.epochs, self.watch = epochs, watch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Every so many epochs are a task."""
        if (trainer.current_epoch + 1) % self.epochs == 0:
            self.watch.task_learned()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    problem.run("cl_diffusion", train, "cl_diffusion", "torch", "lightning")
