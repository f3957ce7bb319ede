"""The gradient of each sample by itself, in chunks: by a batched derivative, or by a backward pass for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from cl_diffusion.fisher.batch import batch_size, has_samples, rows
from cl_diffusion.linalg import Parameters

Losses = Callable[[Parameters, Any], Tensor]
"""``(weights, batch) -> (B,)``."""


def by_vmap(losses: Losses, weights: Parameters, batch: Any, step: int) -> Iterator[Parameters]:
    """``g_i`` by ``vmap(grad)``, ``step`` samples at a time, on a leading axis.

    Fused attention has no batched derivative, so attention runs on its plain kernel inside.

    Raises:
        RuntimeError: the model does not allow it.
    """
    leaves, structure = tree_flatten(batch)
    size = batch_size(batch)
    batched = [position for position, leaf in enumerate(leaves) if has_samples(leaf, size)]

    def sample_loss(replaced: Parameters, *sample: Tensor) -> Tensor:
        row = list(leaves)
        for position, leaf in zip(batched, sample, strict=True):
            row[position] = leaf.unsqueeze(0)
        return losses(replaced, tree_unflatten(row, structure)).squeeze(0)

    gradient_of_each = vmap(grad(sample_loss), (None, *(0 for _ in batched)), randomness="different")
    detached = {name: weight.detach() for name, weight in weights.items()}
    for start in range(0, size, step):
        chunk = [leaves[position][start : start + step] for position in batched]
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                gradients = gradient_of_each(detached, *chunk)
        except RuntimeError as error:
            shown = ", ".join(list(weights)[:3]) + (", ..." if len(weights) > 3 else "")
            raise RuntimeError(
                f"per-sample gradients of {len(weights)} parameters ({shown}) go by torch.func.vmap, which this "
                f"model does not allow: {error}; exclude them (exclude=[...]), take the loss one by one "
                "(OneByOne(loss), slower), or use an estimator without per-sample gradients (SketchedDiagonalFisher)"
            ) from error
        yield gradients


def by_backward(losses: Losses, weights: Parameters, batch: Any, step: int) -> Iterator[Parameters]:
    """``g_i`` by an ordinary forward and backward each, ``step`` samples at a time, on a leading axis."""
    singles, size = rows(batch), batch_size(batch)
    for start in range(0, size, step):
        held = min(step, size - start)
        gradients = {name: weight.new_zeros((held, *weight.shape)) for name, weight in weights.items()}
        for position, single in enumerate(islice(singles, held)):
            with torch.enable_grad():
                loss = losses(weights, single).sum()
            if loss.requires_grad:  # else none of the parameters takes part
                found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
                for chunk, g in zip(gradients.values(), found, strict=True):
                    chunk[position] = g
        yield gradients
