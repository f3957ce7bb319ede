"""The loss of each sample of a LightningModule, and the samples of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cl_diffusion.callbacks.batches import TransferredBatches
from cl_diffusion.callbacks.regularization.task_samples import OwnSamples, TaskSamples
from cl_diffusion.callbacks.regularization.unrecorded import unrecorded
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.fisher import FisherEstimator, OneByOne, OutputLoss, SquaredOutput, estimate, try_out
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.linalg import Operator
from cl_diffusion.progress import track

_ADD = "add `def per_sample_loss(self, batch) -> Tensor` that returns one loss a sample, shape (B,)"


def sample_loss(module: LightningModule, estimator: FisherEstimator) -> Loss:
    """What the estimator differentiates: ``output_loss``, ``per_sample_loss``, or else ``training_step`` one by one.

    Raises:
        TypeError: the estimator needs the model's output and the module has no ``output_loss``; or there is only a
            ``training_step``, and it optimises by itself.
    """
    kind = type(module).__name__
    if estimator.needs_output:
        loss = getattr(module, "output_loss", None)
        if not isinstance(loss, OutputLoss):
            raise TypeError(
                f"{type(estimator).__name__} with {estimator.identity()} needs the model's output, and {kind} has no "
                "`output_loss`; add a property that returns an OutputLoss(criterion, output, target) "
                "(cl_diffusion.fisher)"
            )
        return loss
    if callable(getattr(module, "per_sample_loss", None)):
        return _per_sample_loss
    if not module.automatic_optimization:
        raise TypeError(
            f"{kind} has no `per_sample_loss`, and its `training_step` optimises by itself (automatic_optimization="
            f"False), so that no loss can be had from it; {_ADD}"
        )
    return OneByOne(_training_step)


def estimate_on_task(
    trainer: Trainer,
    module: LightningModule,
    estimator: FisherEstimator,
    task: int,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    label: str = "Fisher",
    samples: TaskSamples | None = None,
) -> Operator:
    """The estimate on the task's samples, by default its own training samples, at the current weights."""
    samples = samples or OwnSamples()
    batches = track(trainer, samples.batches(trainer, task), f"{label} of task {task + 1}")
    differentiated = loss or sample_loss(module, estimator)
    with unrecorded(trainer, module, weights=isinstance(differentiated, OneByOne)):
        return estimate(
            estimator,
            module,
            differentiated,
            TransferredBatches(trainer, batches),
            draw=samples.draw(module),
            seed=seed,
            identity={**(getattr(module, "loss_identity", None) or {}), **samples.describe()},
            record={"task": task + 1},
        )


def try_on_batch(
    trainer: Trainer,
    module: LightningModule,
    estimator: FisherEstimator,
    loss: Loss,
    batch: Any,
    task: int | None,
    regularizer: str,
) -> None:
    """Refuse a module, a loss or a loader that an estimate at the task's end would fail on, before it is trained.

    Tried on ``batch``, or on the task's own samples where the data module knows them (a step may see replay too).

    Raises:
        ValueError: names the regulariser, what failed and what to do.
    """
    stream = task_stream(trainer)
    loaders = tree_leaves(trainer.train_dataloader)
    if stream is None and (once := [loader for loader in loaders if isinstance(loader, Iterator)]):
        raise ValueError(
            f"{regularizer}: train_dataloader={type(once[0]).__name__} gives its batches once, and "
            "the importance is taken from them after they were trained on; give a loader that can be iterated again"
        )
    if isinstance(loss, OneByOne):
        _warn_of_the_cost(trainer, module)
    batches: Iterable[Any] = [batch]
    if stream is not None and task is not None:
        batches = TransferredBatches(trainer, stream.importance_dataloader(task))
    try:
        with unrecorded(trainer, module, weights=isinstance(loss, OneByOne)):
            try_out(estimator, module, loss, batches, draw=getattr(module, "draw", None))
    except FloatingPointError:
        raise
    except Exception as error:
        raise ValueError(
            f"{regularizer}: its importance ({estimator.name}) fails on the first batch, a {type(batch).__name__}, "
            f"with {type(error).__name__}: {error}. {_wanted(module, loss)}"
        ) from error


def _per_sample_loss(module: Any, batch: Any) -> Any:
    return module.per_sample_loss(batch)


def _training_step(module: LightningModule, batch: Any) -> Tensor:
    numbered = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    result = module.training_step(batch, 0) if numbered else module.training_step(batch)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TypeError(f"{type(module).__name__}.training_step returned {result!r} for one sample; expected its loss")
    return loss


def _wanted(module: LightningModule, loss: Loss) -> str:
    kind = type(module).__name__
    if isinstance(loss, SquaredOutput):
        return "Asked is its output, by default that of forward; give output=lambda module, batch: a tensor (B, ...)"
    if isinstance(loss, OneByOne):
        return f"Asked is {kind}.training_step, for the loss of batches of one; {_ADD}"
    if isinstance(loss, OutputLoss):
        return f"Asked is {kind}.output_loss, for output and target of a batch, one row a sample"
    return f"Asked is {kind}.per_sample_loss(batch), for one loss a sample, a tensor (B,)"


def _warn_of_the_cost(trainer: Trainer, module: LightningModule) -> None:
    data = getattr(trainer.train_dataloader, "dataset", None)
    passes = f"{len(data)} of them" if isinstance(data, Sized) else "as many as the task has samples"
    rank_zero_warn(
        f"{type(module).__name__} has no `per_sample_loss`, so the importance of a task is taken from `training_step` "
        f"on batches of one: {passes}, a forward and a backward each, in every pass (2 to 10 times the cost of batches "
        f"on a CPU, tens of times on a GPU). A loss that compares the samples of a batch cannot be taken so; {_ADD}"
    )
