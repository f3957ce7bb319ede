"""What a Fisher is timed beside: an ordinary pass over the same samples, and the loops of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_diffusion import DDPM
from cl_diffusion.diffusion import DrawnBatch
from cl_diffusion.linalg import parameters

LOOPED = 16
"""Samples that the loops over batches of one are timed on; their cost a sample does not depend on how many."""


def loss(model: Any, batch: DrawnBatch) -> Tensor:
    """One entry a sample."""
    return model.per_sample_loss(batch)


def ordinary(model: DDPM, batches: list[DrawnBatch]) -> None:
    """(a): the gradients of a training epoch."""
    for batch in batches:
        model.zero_grad()
        loss(model, batch).mean().backward()


def squared_batch_gradient(model: DDPM, batches: list[DrawnBatch]) -> None:
    """(d): the square of each batch's mean gradient."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        loss(model, batch).mean().backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.square()


def batches_of_one(model: DDPM, batches: list[DrawnBatch], use: Callable[[dict[str, Tensor]], None]) -> None:
    """(b): a backward a sample."""
    seen = 0
    for batch in batches:
        for row in range(len(batch.images)):
            if seen == LOOPED:
                return
            seen += 1
            model.zero_grad()
            loss(model, DrawnBatch(*(field[row : row + 1] for field in batch))).sum().backward()
            use({n: p.grad for n, p in model.named_parameters()})


def squares_one_by_one(model: DDPM, batches: list[DrawnBatch]) -> None:
    """(b) for the diagonal."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    batches_of_one(model, batches, lambda g: [total[n].add_(x.square()) for n, x in g.items()])  # type: ignore[arg-type, return-value]


def two_passes_one_by_one(model: DDPM, batches: list[DrawnBatch]) -> None:
    """(c): the mean gradient, then every sample's projection on it."""
    mean = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    batches_of_one(model, batches, lambda g: [mean[n].add_(x) for n, x in g.items()])  # type: ignore[arg-type, return-value]
    batches_of_one(model, batches, lambda g: parameters.inner(g, mean).square())  # type: ignore[arg-type, return-value]
