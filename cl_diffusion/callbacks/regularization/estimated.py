"""A regulariser whose importance is estimated on the task's samples at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from cl_diffusion.callbacks.batches import TransferredBatches
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.regularization.sample_gradients import estimate_on_task, sample_loss, unrecorded
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.fisher import FisherEstimator, OneByOne, try_out
from cl_diffusion.fisher.gradient import Loss
from cl_diffusion.linalg import Operator


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
        **options: of ``Regularizer``.
    """

    def __init__(
        self,
        estimator: FisherEstimator,
        strength: Any,
        name: str,
        epochs_per_task: int | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(strength, name, epochs_per_task, **options)
        self.estimator = estimator
        self.seed = seed
        self._tried = False
        if self.mode == "proximal" and not estimator.closed_sums:
            raise ValueError(
                f"mode='proximal' with {type(estimator).__name__}: the importances of two tasks have no joint closed "
                "resolvent; use mode='gradient', or an estimator whose sums are closed (diagonal, low rank)"
            )

    def loss(self, pl_module: LightningModule) -> Loss:
        """What is differentiated."""
        return sample_loss(pl_module, self.estimator)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.enabled and stage == "fit":
            self.loss(pl_module)  # refuses a module that has none

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._tried or not self.enabled:
            return
        self._tried = True
        loss, stream = self.loss(pl_module), task_stream(trainer)
        if isinstance(loss, OneByOne):
            _warn_of_the_cost(trainer, pl_module)
        batches: Iterable[Any] = [batch]
        if stream is not None and self._running is not None:  # what a step sees may hold replay too
            batches = TransferredBatches(trainer, stream.importance_dataloader(self._running))
        with unrecorded(pl_module):
            try_out(self.estimator, pl_module, loss, batches, draw=getattr(pl_module, "draw", None), seed=self.seed)

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator:
        return estimate_on_task(trainer, pl_module, self.estimator, task, self.loss(pl_module), seed=self.seed)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for term in self.terms:
            for field, expected in self.estimator.identity().items():
                found = term.operator.provenance.identity.get(field)
                if found != expected:
                    raise ValueError(
                        f"fisher: the checkpoint's importance has {field}={found!r}, this estimator's is {expected!r}; "
                        "use the estimator that the checkpoint was made with, or start without the checkpoint"
                    )


def _warn_of_the_cost(trainer: Trainer, module: LightningModule) -> None:
    data = getattr(trainer.train_dataloader, "dataset", None)
    passes = f"{len(data)} of them" if isinstance(data, Sized) else "as many as the task has samples"
    rank_zero_warn(
        f"{type(module).__name__} has no `per_sample_loss`, so the importance of a task is taken from `training_step` "
        f"on batches of one: {passes}, a forward and a backward each, in every pass (2 to 10 times the cost of batches "
        "on a CPU, tens of times on a GPU). Add `def per_sample_loss(self, batch) -> Tensor` that returns one loss a "
        "sample, shape (B,)"
    )
