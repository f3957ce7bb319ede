"""The loss of each sample, of a project that has only the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_diffusion.fisher.batch import rows


class OneByOne:
    """``(model, batch) -> (B,)`` from a loss of a batch, by asking for it on batches of one sample.

    Gradients are then taken by an ordinary backward a sample, never batched: any loss will do that is a mean (or sum)
    over samples, at several times the cost of a batched one.

    Args:
        loss: ``(model, batch) -> scalar``.

    Raises:
        ValueError: when called, if the loss of one sample is not a single number.
    """

    singly = True

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self.loss = loss

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The loss of each sample, ``(B,)``."""
        return torch.stack([self._single(model, row) for row in rows(batch)])

    def _single(self, model: Any, row: Any) -> Tensor:
        loss = self.loss(model, row)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                f"loss(model, batch) of a batch of one is {shown}; expected a single number: return the mean over the "
                "batch, as a tensor (of a mapping, its 'loss')"
            )
        return loss.reshape(())
