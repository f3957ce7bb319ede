"""Elastic weight consolidation over any importance estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from cl_diffusion.callbacks.progress import track
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.fisher import FisherEstimator, estimate
from cl_diffusion.linalg import Operator


class EWC(Regularizer):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, 1612.00796): importance is a Fisher of the old task.

    At the end of each task ``fisher`` is estimated on that task's own training samples, without replay, at the raw
    weights. The module offers ``per_sample_loss(batch) -> (B,)`` and, where its loss draws random numbers,
    ``draw(batch, keys) -> batch``. What the estimator reports of itself is logged as ``ewc/...`` at every boundary.

    Args:
        fisher: the importance estimator, for example ``DiagonalFisher()`` or ``MeanGradientFisher()``.
        strength: ``lambda`` of ``lambda/2 (theta - theta_k)^T F_k (theta - theta_k)``, finite and >= 0. It is a weight
            on this estimator's matrix: see the operator's provenance before carrying it over to another.
        seed: of the draws of timestep and noise.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
    """

    def __init__(
        self, fisher: FisherEstimator, strength: float = 1.0, seed: int = 0, epochs_per_task: int | None = None
    ) -> None:
        super().__init__(strength, epochs_per_task)
        self.fisher = fisher
        self.seed = seed

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.strength > 0 and not callable(getattr(pl_module, "per_sample_loss", None)):
            raise TypeError(
                f"EWC needs the loss of each sample, and {type(pl_module).__name__} has no `per_sample_loss`; add "
                "`def per_sample_loss(self, batch) -> Tensor` that returns one loss a sample, shape (B,)"
            )

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator:
        operator = estimate(
            self.fisher,
            pl_module,
            _per_sample_loss,
            track(trainer, _importance_batches(trainer, task), f"Fisher of task {task + 1}"),
            draw=getattr(pl_module, "draw", None),
            seed=self.seed,
            identity=getattr(pl_module, "loss_identity", None),
            record={"task": task + 1},
        )
        self._log(trainer, operator, task)
        return operator

    def _log(self, trainer: Trainer, operator: Operator, task: int) -> None:
        record = {"trace": float(operator.trace()), **operator.provenance.record[-1]}
        figures = {f"ewc/{name}": float(value) for name, value in record.items() if name not in ("seed", "keyed")}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        described = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if isinstance(value, float))
        rank_zero_info(f"EWC, {operator.provenance.identity['estimator']}, task {task + 1}: {described}")


def _per_sample_loss(module: Any, batch: Any) -> Any:
    return module.per_sample_loss(batch)


def _importance_batches(trainer: Trainer, task: int) -> Iterable[Any]:
    stream = task_stream(trainer)
    if stream is not None:
        return stream.importance_dataloader(task)
    return cast("Iterable[Any]", trainer.train_dataloader)
