"""The one way to run an estimator, and to try one out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from cl_diffusion.fisher.criterion import OutputLoss
from cl_diffusion.fisher.estimator import FisherEstimator
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.fisher.population import Draw, Population
from cl_diffusion.fisher.undisturbed import undisturbed
from cl_diffusion.linalg import Operator, Provenance


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
        loss: ``loss(model, batch) -> (B,)``, one entry a sample; an ``OutputLoss`` where the estimator needs outputs.
        batches: a list or DataLoader; ``KeyedBatch`` where samples have indices of their own.
        draw: makes a batch's random draws from one key a sample, so that ``loss`` of its result is deterministic.
        seed: of the draws.
        chunk_size: ``vmap(grad)`` holds so many samples at a time, where it is used; by default as fit 128 MiB.
        identity: further fields of the provenance's identity, such as the loss reduction.
        record: further fields of the provenance's record, such as the task.

    Returns:
        The operator, with its provenance.

    Raises:
        ValueError: no samples, no trainable parameters, a loss of another shape, or one that says too little of itself.
        FloatingPointError: a gradient is not finite; names the sample and the first bad parameter.

    Example:
        >>> from cl_diffusion.fisher import DiagonalFisher
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batches = [torch.tensor([[1.0, 0.0], [3.0, 2.0]])]
        >>> operator = estimate(DiagonalFisher(), model, lambda model, x: model(x)[:, 0], batches)
        >>> operator.diagonal()["weight"]  # the mean of squared gradients, which here are the inputs
        tensor([[5., 2.]])
    """
    population = Population(model, loss, batches, draw, seed, chunk_size)
    with undisturbed(model) as first:
        operator, report = estimator.compute(population)
    criterion = {"criterion": loss.describe()} if isinstance(loss, OutputLoss) else {}
    operator.provenance = Provenance(
        {**estimator.identity(), **criterion, **(identity or {})},
        ({"seed": seed, "keyed": population.keyed, "dtype": str(first.dtype), **report, **(record or {})},),
    )
    return operator


def try_out(
    estimator: FisherEstimator,
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    draw: Draw | None = None,
    seed: int = 0,
) -> None:
    """Raise at once what ``estimate`` would raise of a model and a loss that the estimator does not fit.

    Looks at the first batch only; arguments as of ``estimate``. Also refused is a loss that no parameter takes part in.
    """
    first = list(islice(batches, 1))
    with undisturbed(model):
        estimator.try_out(Population(model, loss, first, draw, seed))
        for rows in Population(model, loss, first, draw, seed).rows():
            with torch.enable_grad():
                losses = loss(model, rows.batch)
            if not losses.requires_grad:
                raise ValueError(
                    "loss(model, batch) has no gradient: no trainable parameter takes part in it, or it was detached"
                )
