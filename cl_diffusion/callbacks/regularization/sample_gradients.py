"""The loss of each sample of a LightningModule, and the samples of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from cl_diffusion.callbacks.batches import TransferredBatches, training_batches
from cl_diffusion.callbacks.progress import track
from cl_diffusion.callbacks.task import task_stream
from cl_diffusion.fisher import FisherEstimator, OneByOne, OutputLoss, estimate
from cl_diffusion.fisher.gradient import Loss
from cl_diffusion.linalg import Operator


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
            "False), so that no loss can be had from it; add `def per_sample_loss(self, batch) -> Tensor` that returns "
            "one loss a sample, shape (B,)"
        )
    return OneByOne(_training_step)


def task_batches(trainer: Trainer, task: int) -> Iterable[Any]:
    """The task's own training batches."""
    stream = task_stream(trainer)
    return training_batches(trainer) if stream is None else stream.importance_dataloader(task)


def estimate_on_task(
    trainer: Trainer,
    module: LightningModule,
    estimator: FisherEstimator,
    task: int,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    label: str = "Fisher",
) -> Operator:
    """The estimate on the task's own training samples, at the current weights."""
    batches = track(trainer, task_batches(trainer, task), f"{label} of task {task + 1}")
    with unrecorded(module):
        return estimate(
            estimator,
            module,
            loss or sample_loss(module, estimator),
            TransferredBatches(trainer, batches),
            draw=getattr(module, "draw", None),
            seed=seed,
            identity=getattr(module, "loss_identity", None),
            record={"task": task + 1},
        )


@contextmanager
def unrecorded(module: LightningModule) -> Iterator[None]:
    """Losses computed inside log nothing, and leave the module's metrics and buffers as they were.

    Whatever else a ``training_step`` changes by itself stays changed: parameters, lists that it fills, its logger.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    metrics = [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
    own = [(parent, name, child) for parent, name, child in metrics if isinstance(child, Metric)]
    speaking = [part for part in module.modules() if isinstance(part, LightningModule)]
    for parent, name, child in own:
        setattr(parent, name, child.clone())
    for part in speaking:
        part.__dict__["log"] = part.__dict__["log_dict"] = _silent
    try:
        yield
    finally:
        for part in speaking:
            del part.__dict__["log"], part.__dict__["log_dict"]
        for parent, name, child in own:
            setattr(parent, name, child)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


def _per_sample_loss(module: Any, batch: Any) -> Any:
    return module.per_sample_loss(batch)


def _training_step(module: LightningModule, batch: Any) -> Tensor:
    numbered = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    result = module.training_step(batch, 0) if numbered else module.training_step(batch)
    loss = result["loss"] if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{type(module).__name__}.training_step returned {result!r} for one sample; expected its loss: add "
            "`def per_sample_loss(self, batch) -> Tensor` that returns one loss a sample, shape (B,)"
        )
    return loss


def _silent(*_: Any, **__: Any) -> None:
    """Instead of ``log`` and ``log_dict``."""
