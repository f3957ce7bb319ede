"""A user's per-sample losses as a function of parameters and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_diffusion.fisher.batch import batch_size, described
from cl_diffusion.linalg import Parameters

Loss = Callable[[Any, Any], Tensor]


class Losses(nn.Module):
    """``loss(model, batch) -> (B,)`` as the output of a module, so that the model's parameters can be replaced."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        """``(B,)``, of the model as it is."""
        return self.loss(self.model, batch)

    def at(self, weights: Parameters, batch: Any) -> Tensor:
        """``(B,)``, with these parameters in place of the model's own.

        Raises:
            ValueError: the loss is not one entry a sample.
        """
        losses: Tensor = functional_call(self, {f"model.{name}": w for name, w in weights.items()}, (batch,))
        if losses.shape != (batch_size(batch),):
            raise ValueError(
                f"loss(model, batch) has shape {tuple(losses.shape)} on {batch_size(batch)} samples; expected "
                f"({batch_size(batch)},), one entry a sample: reduce over the elements of each sample, not over samples"
            )
        return losses


@contextmanager
def taken_by(model: nn.Module, batch: Any) -> Iterator[None]:
    """A loss of a batch that is the user's; where the model does not take it, the error says what it holds."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        dtype = next(model.parameters()).dtype
        raise RuntimeError(
            f"loss(model, batch) fails on a batch of {described(batch)}: {error}; expected what {type(model).__name__} "
            f"takes, whose parameters are {dtype}: give such batches, or convert them in the loss"
        ) from error
