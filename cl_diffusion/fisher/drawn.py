"""What the gradients of some samples are computed from, once everything random is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_diffusion.fisher.gradient import LossGradients
from cl_diffusion.fisher.losses import taken_by
from cl_diffusion.fisher.population import Population, Rows, select
from cl_diffusion.fisher.residual import Expectation, Residual
from cl_diffusion.fisher.sample_loss import Inputs
from cl_diffusion.keys import derive_keys

Importance = Mapping[int, float]


class Drawn(NamedTuple):
    """Gradients to be: what the loss is computed from, and the index of each sample.

    ``num_samples``: how many samples these rows stand for; fewer than rows where a sample has a row for each outcome;
    ``outcome`` then says for which one.
    """

    inputs: Inputs
    indices: Tensor
    num_samples: float
    outcome: int = 0


class Drawing:
    """Draws what a residual needs beside the samples, and finds their importance.

    Args:
        population: model, loss and seed.
        residual: which loss of the output is differentiated.
        importance: a number a sample, by index; one that is not there counts as average.
        gradients: in whose type and on whose device it is.
    """

    def __init__(
        self, population: Population, residual: Residual, importance: Importance | None, gradients: LossGradients
    ) -> None:
        self._model = population.model
        self._loss: Any = population.loss
        self._seed = population.seed
        self._residual = residual
        self._importance = importance
        self._mean_importance = sum(importance.values()) / max(1, len(importance)) if importance else 1.0
        self._gradients = gradients
        self._outcomes: int | None = None

    def of(self, rows: Rows, draw: int) -> Iterator[Drawn]:
        """These samples: once, or once for each outcome where the residual is an expectation over them."""
        batch, indices, reseed = rows
        device = self._gradients.device
        importance = None
        if self._importance is not None:
            values = [self._importance.get(index, self._mean_importance) for index in indices.tolist()]
            importance = torch.tensor(values, dtype=self._gradients.dtype, device=device)
        if isinstance(self._residual, Expectation):
            for outcome in range(self._num_outcomes(rows)):
                chosen = torch.full((len(indices),), outcome, device=device)
                inputs = Inputs(batch, chosen, importance, reseed)
                yield Drawn(inputs, indices, len(indices) / self._num_outcomes(rows), outcome)
            return
        keys = derive_keys(self._seed, indices, draw, "residual")
        extra = self._residual.randomness(self._loss, self._model, batch, keys)
        yield Drawn(Inputs(batch, extra, importance, reseed), indices, float(len(indices)))

    @torch.no_grad()
    def _num_outcomes(self, rows: Rows) -> int:
        if self._outcomes is None:
            first = select(rows, torch.arange(len(rows.indices)) == 0).batch
            with taken_by(self._model, first):
                output = self._loss.output(self._model, first)
            self._outcomes = int(self._loss.criterion.num_outcomes(output))
        return self._outcomes
