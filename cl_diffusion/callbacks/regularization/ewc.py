"""Elastic weight consolidation over any importance estimator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from cl_diffusion.callbacks.batches import TransferredBatches, training_batches
from cl_diffusion.callbacks.progress import track
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.fisher import FisherEstimator, OutputLoss, estimate
from cl_diffusion.linalg import Operator


class EWC(Regularizer):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, 1612.00796): importance is a Fisher of the old task.

    At the end of each task ``fisher`` is estimated on that task's own training samples, without replay, at the raw
    weights. The module offers ``per_sample_loss(batch) -> (B,)`` (or ``output_loss``, an ``OutputLoss``, where the
    estimator looks at outputs) and, where its loss draws random numbers,
    ``draw(batch, keys) -> batch``. What the estimator reports of itself is logged as ``ewc/...`` at every boundary.

    Args:
        fisher: the importance estimator, for example ``DiagonalFisher()`` or ``MeanGradientFisher()``.
        strength: ``lambda`` of ``lambda/2 (theta - theta_k)^T F_k (theta - theta_k)``, finite and >= 0. It is a weight
            on this estimator's matrix: see the operator's provenance before carrying it over to another.
        seed: of the draws of timestep and noise.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints; two of these in one Trainer need two names.
    """

    def __init__(
        self,
        fisher: FisherEstimator,
        strength: float = 1.0,
        seed: int = 0,
        epochs_per_task: int | None = None,
        name: str = "ewc",
    ) -> None:
        super().__init__(strength, name, epochs_per_task)
        if not isinstance(fisher, FisherEstimator):
            raise TypeError(f"fisher={fisher!r}; expected an estimator, such as DiagonalFisher()")
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
        if (
            self.strength > 0
            and self.fisher.needs_output
            and not isinstance(getattr(pl_module, "output_loss", None), OutputLoss)
        ):
            raise TypeError(
                f"fisher={type(self.fisher).__name__} with {self.fisher.identity()} needs the model's output, and "
                f"{type(pl_module).__name__} has no `output_loss`; add a property that returns an "
                "OutputLoss(criterion, output, target) (cl_diffusion.fisher)"
            )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for term in self.terms:
            for field, expected in self.fisher.identity().items():
                found = term.operator.provenance.identity.get(field)
                if found != expected:
                    raise ValueError(
                        f"fisher: the checkpoint's importance has {field}={found!r}, this estimator's is {expected!r}; "
                        "use the estimator that the checkpoint was made with, or start without the checkpoint"
                    )

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator:
        operator = estimate(
            self.fisher,
            pl_module,
            pl_module.output_loss if self.fisher.needs_output else _per_sample_loss,  # type: ignore[arg-type]
            TransferredBatches(trainer, track(trainer, _batches(trainer, task), f"Fisher of task {task + 1}")),
            draw=getattr(pl_module, "draw", None),
            seed=self.seed,
            identity=getattr(pl_module, "loss_identity", None),
            record={"task": task + 1},
        )
        self._log(trainer, operator, task)
        return operator

    def _log(self, trainer: Trainer, operator: Operator, task: int) -> None:
        record = {"trace": float(operator.trace()), **operator.provenance.record[-1]}
        report = {key: value for key, value in record.items() if isinstance(value, float)}
        for logger in trainer.loggers:
            figures = {f"{self.name}/{key}": value for key, value in {"task": task + 1.0, **report}.items()}
            logger.log_metrics(figures, step=trainer.global_step)
        described = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in report.items())
        rank_zero_info(f"EWC, {operator.provenance.identity['estimator']}, task {task + 1}: {described}")


def _per_sample_loss(module: Any, batch: Any) -> Any:
    return module.per_sample_loss(batch)


def _batches(trainer: Trainer, task: int) -> Iterable[Any]:
    stream = task_stream(trainer)
    return training_batches(trainer) if stream is None else stream.importance_dataloader(task)
