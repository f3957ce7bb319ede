"""Gradients of a per-sample loss: one a sample, their sum, and their projections on a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from cl_diffusion.linalg import Parameters, parameters

Loss = Callable[[Any, Any], Tensor]


class LossGradients:
    """Gradients of ``loss(model, batch) -> (B,)`` with respect to the model's trainable parameters.

    Nothing of the model changes: no ``.grad`` is written, no buffer updated. Fused attention has no batched derivative,
    so attention runs on its plain kernel inside.

    Args:
        model: any module; parameters that require no gradient are left out.
        loss: one entry a sample. A sample's loss must not depend on the other samples of its batch; tensors of a batch
            whose leading axis is as long as the first tensor's are taken to hold one entry a sample, others are shared.
        chunk_size: per-sample gradients are held for so many samples at a time; by default as many as fit
            ``memory_budget`` bytes.
        memory_budget: bytes of per-sample gradients held at once.

    Raises:
        ValueError: no parameter requires a gradient, or ``chunk_size`` is not positive.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, chunk_size: int | None = None, memory_budget: int = 512 * 2**20
    ) -> None:
        self.parameters: Parameters = parameters.trainable_parameters(model)
        if not self.parameters:
            raise ValueError(f"model={type(model).__name__} has no parameter that requires a gradient; unfreeze some")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size!r}; expected at least 1 sample, or None")
        self._losses = _Losses(model, loss)
        bytes_a_sample = sum(p.numel() * p.element_size() for p in self.parameters.values())
        self._chunk_size = chunk_size or max(1, memory_budget // bytes_a_sample)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which gradients are computed."""
        return next(iter(self.parameters.values())).dtype

    def per_sample(self, batch: Any) -> Iterator[Parameters]:
        """``g_i`` of each sample, in chunks: every tensor has a leading axis of at most ``chunk_size`` samples."""
        leaves, structure = tree_flatten(batch)
        size = batch_size(batch)
        batched = [position for position, leaf in enumerate(leaves) if _has_samples(leaf, size)]

        def sample_loss(weights: Parameters, *sample: Tensor) -> Tensor:
            row = list(leaves)
            for position, leaf in zip(batched, sample, strict=True):
                row[position] = leaf.unsqueeze(0)
            return self._call(weights, tree_unflatten(row, structure)).squeeze(0)

        gradient_of_each = vmap(grad(sample_loss), (None, *(0 for _ in batched)), randomness="different")
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for start in range(0, size, self._chunk_size):
            chunk = [leaves[position][start : start + self._chunk_size] for position in batched]
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                yield gradient_of_each(weights, *chunk)

    def summed(self, batch: Any) -> Parameters:
        """``sum_i g_i`` over the batch, by one ordinary backward."""
        with torch.enable_grad():
            total = self._call(self.parameters, batch).sum()
        gradients = torch.autograd.grad(total, list(self.parameters.values()), materialize_grads=True)
        return dict(zip(self.parameters, gradients, strict=True))

    def projections(self, batch: Any, direction: Parameters) -> Tensor:
        """``g_i^T v`` of each sample: shape ``(B,)``."""
        chunks = []
        for gradients in self.per_sample(batch):
            parts = [g.flatten(1) @ direction[name].reshape(-1) for name, g in gradients.items()]
            chunks.append(torch.stack(parts).sum(0))
        return torch.cat(chunks)

    def _call(self, weights: Parameters, batch: Any) -> Tensor:
        losses: Tensor = functional_call(self._losses, {f"model.{n}": w for n, w in weights.items()}, (batch,))
        if losses.shape != (batch_size(batch),):
            raise ValueError(
                f"loss(model, batch) has shape {tuple(losses.shape)}; expected ({batch_size(batch)},), one entry a "
                "sample: reduce over the elements of each sample, not over samples"
            )
        return losses


def batch_size(batch: Any) -> int:
    """The number of samples: the leading axis of the batch's first tensor that has one.

    Raises:
        ValueError: the batch holds no tensor with an axis.
    """
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf)
    raise ValueError(f"batch={type(batch).__name__} holds no tensor with an axis of samples")


def take(batch: Any, rows: Tensor) -> Any:
    """The chosen samples of a batch; what has no axis of samples is kept as it is."""
    leaves, structure = tree_flatten(batch)
    size = batch_size(batch)
    return tree_unflatten([leaf[rows] if _has_samples(leaf, size) else leaf for leaf in leaves], structure)


def _has_samples(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size


class _Losses(nn.Module):
    """The losses as the output of a module, so that ``functional_call`` can replace the model's parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)
