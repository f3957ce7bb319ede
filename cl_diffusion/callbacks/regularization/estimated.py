"""A regulariser whose importance is estimated on the task's samples at its end."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.regularization.sample_gradients import estimate_on_task, sample_loss
from cl_diffusion.callbacks.regularization.task_samples import OwnSamples, TaskSamples
from cl_diffusion.fisher import FisherEstimator
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.linalg import Diagonal, Identity, LowRank, Operator


class EstimatedImportance(Regularizer):
    """``F_k`` is what an estimator says of the task's own training samples.

    The estimator is tried on a few samples of the first batch, so that a module that it does not fit is refused before
    a task is trained.

    Args:
        estimator: of the importance.
        strength: see ``Regularizer``, as all other arguments.
        name: in the log and in checkpoints.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks.
        seed: of the draws that the module's loss makes.
        samples: which samples; None is the task's own.
        **options: of ``Regularizer``.

    Raises:
        ValueError: the mode, or ``max_rank``, does not go with the estimator's operators.
    """

    def __init__(
        self,
        estimator: FisherEstimator,
        strength: Any,
        name: str,
        epochs_per_task: int | None = None,
        *,
        seed: int = 0,
        samples: TaskSamples | None = None,
        **options: Any,
    ) -> None:
        super().__init__(strength, name, epochs_per_task, **options)
        self.estimator = estimator
        self.seed = seed
        self.samples = samples or OwnSamples()
        kind, called = estimator.kind, type(estimator).__name__
        if self.mode == "proximal" and kind not in (None, Diagonal.kind, Identity.kind, LowRank.kind):
            raise ValueError(
                f"mode='proximal' with {called}: the importances of two tasks have no joint closed resolvent; use "
                "mode='gradient', or an estimator whose sums are closed (diagonal, identity, low rank)"
            )
        if self.penalty.max_rank is not None and kind not in (None, LowRank.kind):
            raise ValueError(
                f"max_rank={self.penalty.max_rank} with {called}, whose operators are not of low rank ({kind}); leave "
                "it out, or use MeanGradientFisher or LeadingEigenpairsFisher"
            )

    def loss(self, pl_module: LightningModule) -> Loss:
        """What is differentiated."""
        return sample_loss(pl_module, self.estimator)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.enabled and stage == "fit":
            self.samples.check(trainer, pl_module)

    @override
    def estimates(self, pl_module: LightningModule) -> list[tuple[FisherEstimator, Loss]]:
        return [(self.estimator, self.loss(pl_module)), *super().estimates(pl_module)]

    @override
    def patterns(self) -> list[str]:
        return [*self.estimator.include, *self.estimator.exclude]

    @override
    def identity(self) -> dict[str, str]:
        return {**self.estimator.identity(), **self.samples.describe()}

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator:
        loss = self.loss(pl_module)
        return estimate_on_task(trainer, pl_module, self.estimator, task, loss, seed=self.seed, samples=self.samples)
