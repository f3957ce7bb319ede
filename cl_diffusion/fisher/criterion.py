"""Losses that are negative log-likelihoods of a model's output: what a true Fisher and output normalisation need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.keys import keyed_normal, keyed_uniform


class Criterion(ABC):
    """A loss ``l(f, y)`` of each sample's output and target, and the distribution that it is the likelihood of.

    ``l(f, y) = -log p(y | f) + const``. Outputs are ``(B, ...)``; nothing couples the samples of a batch.
    """

    name: str

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """``l``, shape ``(B,)``."""

    @abstractmethod
    def randomness(self, target: Tensor, keys: Tensor) -> Tensor:
        """What ``sampled_target`` needs, one entry a sample, a function of the keys and of the target's shape alone."""

    @abstractmethod
    def sampled_target(self, output: Tensor, randomness: Tensor) -> Tensor:
        """``y ~ p(. | f)``, a function of the output and of the randomness."""

    @abstractmethod
    def num_outcomes(self, output: Tensor) -> int:
        """How many ``outcome_losses`` it takes to make up the generalised Gauss-Newton matrix."""

    @abstractmethod
    def outcome_losses(self, output: Tensor, outcome: Tensor) -> Tensor:
        """``L_j``, shape ``(B,)``, with ``sum_j grad L_j grad L_j^T = J^T (d^2 l / df^2) J``; ``outcome`` is ``j``."""

    @abstractmethod
    def hessian_trace(self, output: Tensor) -> Tensor:
        """``tr d^2 l / df^2``, shape ``(B,)``."""


class SquaredError(Criterion):
    """``l = w sum_j (f_j - y_j)^2`` over the ``d`` elements of a sample: a Gaussian of variance ``1 / (2 w)``.

    So the true Fisher is ``2 w E[J^T J]``.

    Args:
        reduction: ``"mean"`` is ``w = 1/d``, ``"half_sum"`` is ``w = 1/2``.

    Raises:
        ValueError: the reduction is unknown.
    """

    def __init__(self, reduction: Literal["mean", "half_sum"] = "mean") -> None:
        if reduction not in ("mean", "half_sum"):
            raise ValueError(f"reduction={reduction!r}; expected 'mean' or 'half_sum'")
        self.reduction = reduction
        self.name = f"squared error, {'mean' if reduction == 'mean' else 'half the sum'} over elements"

    @override
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.shape != target.shape:
            raise ValueError(
                f"output has shape {tuple(output.shape)} and target {tuple(target.shape)}; expected the same, for "
                "broadcasting would compare samples with each other"
            )
        squared_error: Tensor = (output - target).square().reshape(len(output), -1)
        return squared_error.mean(1) if self.reduction == "mean" else squared_error.sum(1) / 2

    @override
    def randomness(self, target: Tensor, keys: Tensor) -> Tensor:
        return keyed_normal(keys, tuple(target.shape[1:])).to(target)

    @override
    def sampled_target(self, output: Tensor, randomness: Tensor) -> Tensor:
        deviation: float = (2 * self._weight(output)) ** -0.5
        return output + deviation * randomness

    @override
    def num_outcomes(self, output: Tensor) -> int:
        return output[0].numel()

    @override
    def outcome_losses(self, output: Tensor, outcome: Tensor) -> Tensor:
        flat = output.reshape(len(output), -1)
        scale: float = (2 * self._weight(output)) ** 0.5
        return scale * flat.gather(1, outcome[:, None])[:, 0]

    @override
    def hessian_trace(self, output: Tensor) -> Tensor:
        flat = output.reshape(len(output), -1)
        return torch.full_like(flat[:, 0], 2 * self._weight(output) * flat.shape[1])

    def _weight(self, output: Tensor) -> float:
        return 1 / output[0].numel() if self.reduction == "mean" else 0.5


class CrossEntropy(Criterion):
    """``l = -log softmax(f)_y``: a categorical distribution with logits ``f`` of shape ``(B, classes)``."""

    name = "cross-entropy"

    @override
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(_logits(output), target, reduction="none")

    @override
    def randomness(self, target: Tensor, keys: Tensor) -> Tensor:
        return keyed_uniform(keys).to(target.device)

    @override
    def sampled_target(self, output: Tensor, randomness: Tensor) -> Tensor:
        """The inverse of the cumulative distribution at a uniform number."""
        cumulative = _logits(output).double().softmax(1).cumsum(1)
        return (cumulative < randomness[:, None]).sum(1).clamp(max=output.shape[1] - 1)

    @override
    def num_outcomes(self, output: Tensor) -> int:
        return _logits(output).shape[1]

    @override
    def outcome_losses(self, output: Tensor, outcome: Tensor) -> Tensor:
        """``sqrt(p_c) (-log p_c)`` with ``p_c`` held fixed: the exact expectation over labels."""
        log_p = _logits(output).log_softmax(1).gather(1, outcome[:, None])[:, 0]
        root_p: Tensor = (0.5 * log_p.detach()).exp()
        return -log_p * root_p

    @override
    def hessian_trace(self, output: Tensor) -> Tensor:
        return 1 - _logits(output).softmax(1).square().sum(1)


@dataclass(frozen=True)
class OutputLoss:
    """A loss ``w l(f, y)`` that says what its output and its target are; also a plain ``loss(model, batch) -> (B,)``.

    The parts of a batch ``(*inputs, target)`` by default: ``f = model(*inputs)``. A LightningModule offers one as
    ``output_loss`` to take part in true Fishers and output normalisation.

    Args:
        criterion: ``l``.
        output: ``(model, batch) -> f``, shape ``(B, ...)``.
        target: ``(model, batch) -> y``, without a pass through the network.
        weight: ``(model, batch) -> w``, shape ``(B,)``, for a weighted loss; None is 1. The true Fisher of ``w l`` is
            ``w`` times that of ``l`` (a squared error has the variance ``d / (2 w)``).
    """

    criterion: Criterion
    output: Callable[[Any, Any], Tensor] = lambda model, batch: model(*batch[:-1])
    target: Callable[[Any, Any], Tensor] = lambda model, batch: batch[-1]
    weight: Callable[[Any, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.criterion, Criterion):
            raise TypeError(
                f"criterion={self.criterion!r}; expected a Criterion, such as SquaredError() or CrossEntropy(): a loss "
                "of torch.nn does not say which distribution it is the likelihood of"
            )

    def describe(self) -> str:
        """What the loss is, for the provenance."""
        return self.criterion.name + ("" if self.weight is None else ", weighted")

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """``w l`` of each sample, shape ``(B,)``."""
        losses = self.criterion(self.output(model, batch), self.target(model, batch))
        return losses if self.weight is None else losses * self.weight(model, batch)


def _logits(output: Tensor) -> Tensor:
    if output.ndim != 2:
        raise ValueError(f"output has shape {tuple(output.shape)}; cross-entropy expects logits (B, classes)")
    return output
