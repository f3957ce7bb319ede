"""The interface of an importance estimator, and the one way to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from cl_diffusion.evaluation_mode import evaluation_mode
from cl_diffusion.fisher.gradient import Loss, LossGradients
from cl_diffusion.fisher.samples import Draw, Samples
from cl_diffusion.linalg import Operator, Provenance


class FisherEstimator(ABC):
    """An estimate of a second moment of per-sample gradients.

    A leaf states its sums, fills them in one or more passes over ``Samples``, reduces them over processes with
    ``Samples.all_reduce``, and returns an operator. It holds configuration only: no state survives ``compute``.
    """

    @abstractmethod
    def compute(self, samples: Samples) -> tuple[Operator, dict[str, float]]:
        """The operator, and what the estimator reports of its own sampling error (with the key ``samples``)."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What makes two estimates comparable: estimator, residual and whatever else defines the matrix."""


def estimate(
    estimator: FisherEstimator,
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    draw: Draw | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    identity: Mapping[str, str] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Operator:
    """An importance operator of ``model`` on the samples of ``batches``, an average over samples.

    The model is in evaluation mode during the passes; its training flags, buffers, ``.grad`` and torch's random state
    are left as found. Where a default process group is initialised, ``batches`` are this process's share and every
    process gets the same operator.

    Args:
        estimator: which matrix, and how.
        model: any module with trainable parameters.
        loss: ``loss(model, batch) -> (B,)``, one entry a sample.
        batches: a list or DataLoader; ``KeyedBatch`` where samples have indices of their own.
        draw: makes a batch's random draws from one key a sample, so that ``loss`` of its result is deterministic.
        seed: of the draws.
        chunk_size: per-sample gradients are held for so many samples at a time; by default as fit 512 MiB.
        identity: further fields of the provenance's identity, such as the loss reduction.
        record: further fields of the provenance's record, such as the task.

    Returns:
        The operator, with its provenance.

    Raises:
        ValueError: no samples, no trainable parameters, a loss of another shape.
        FloatingPointError: a gradient is not finite; names the sample and the first bad parameter.
    """
    gradients = LossGradients(model, loss, chunk_size)
    samples = Samples(gradients, batches, draw, seed)
    devices = [gradients.device] if gradients.device.type == "cuda" else []
    with (
        evaluation_mode(model),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.autocast(gradients.device.type, enabled=False),
    ):
        operator, report = estimator.compute(samples)
    operator.provenance = Provenance(
        {**estimator.identity(), **(identity or {})},
        ({"seed": seed, "keyed": samples.keyed, "dtype": str(gradients.dtype), **report, **(record or {})},),
    )
    return operator


def require_samples(count: float) -> None:
    """Refuse an average over nothing."""
    if count == 0:
        raise ValueError("batches holds no sample; an importance operator is an average over at least one")
