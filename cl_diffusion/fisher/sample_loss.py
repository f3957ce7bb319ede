"""The loss whose per-sample gradients an estimator sees: the model's own, with another residual or other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_diffusion.fisher.criterion import OutputLoss
from cl_diffusion.fisher.residual import Residual


class Inputs(NamedTuple):
    """What the loss of a batch is computed from, everything random drawn: a pytree whose leaves hold samples.

    ``batch``: as the model takes it. ``randomness``: of the residual, or None. ``importance``: a number a sample that a
    weighting has found beforehand, or None. ``reseed``: what torch's generator is seeded with first, for a loss that
    draws for itself.
    """

    batch: Any
    randomness: Tensor | None = None
    importance: Tensor | None = None
    reseed: int | None = None


@dataclass(frozen=True)
class Terms:
    """What a weighting may look at, one entry a sample; nothing of it is differentiated.

    ``losses``: ``l``, ``(B,)``. ``output``: ``f``, None where the loss does not say. ``output_gradient()``: ``dl/df``.
    """

    inputs: Inputs
    losses: Tensor
    loss: Any
    output: Tensor | None
    output_gradient: Callable[[], Tensor]


SampleWeights = Callable[[Terms], Tensor]


class SampleLoss:
    """``sqrt(a_i) l_i``, the residual's loss and weights that are held fixed: ``g g^T`` is then weighted by ``a_i``.

    Args:
        loss: ``loss(model, batch) -> (B,)``.
        residual: which loss of the output is differentiated.
        weights: ``a_i`` from what is known of each sample; None is ones.

    Raises:
        ValueError: the residual needs an output, and the loss does not say what that is.
    """

    def __init__(self, loss: Any, residual: Residual, weights: SampleWeights | None = None) -> None:
        if residual.needs_output and not isinstance(loss, OutputLoss):
            raise ValueError(
                f"residual={residual.name!r} needs the model's output, and loss={loss!r} does not say what it is; "
                "give an OutputLoss(criterion, output, target) (a LightningModule offers one as `output_loss`)"
            )
        self.loss = loss
        self.singly = getattr(loss, "singly", False)
        self.residual = residual
        self.weights = weights

    def __call__(self, model: Any, inputs: Inputs) -> Tensor:
        """The weighted losses, ``(B,)``."""
        if self.weights is None and not self.residual.needs_output:
            losses: Tensor = self.loss(model, inputs.batch)
            return losses
        terms = self.terms(model, inputs)
        if self.weights is None:
            return terms.losses
        weights = self.weights(terms).detach()
        if weights.shape != terms.losses.shape:
            raise ValueError(
                f"the weighting gives weights of shape {tuple(weights.shape)}; expected {tuple(terms.losses.shape)}, "
                "one a sample"
            )
        return terms.losses * weights.sqrt()

    def terms(self, model: Any, inputs: Inputs) -> Terms:
        """Losses and what they are made of; the losses are differentiable in the model's parameters."""
        batch, extra = inputs.batch, inputs.randomness
        if not isinstance(self.loss, OutputLoss):
            return Terms(inputs, self.loss(model, batch), self.loss, None, self._no_output)
        loss, residual = self.loss, self.residual
        output, target = loss.output(model, batch), loss.target(model, batch)
        weight = None if loss.weight is None else residual.loss_weight(loss.weight(model, batch)).detach()

        def losses_of(f: Tensor) -> Tensor:
            losses = residual.losses(loss.criterion, f, target, extra)
            return losses if weight is None else losses * weight

        def output_gradient() -> Tensor:
            gradient: Tensor = torch.func.grad(lambda f: losses_of(f).sum())(output.detach())
            return gradient

        return Terms(inputs, losses_of(output), loss, output.detach(), output_gradient)

    def _no_output(self) -> Tensor:
        raise ValueError(
            f"the weighting needs the gradient at the model's output, and loss={self.loss!r} does not say what that "
            "is; give an OutputLoss(criterion, output, target), or for a mean squared error the number of its elements"
        )
