"""Which gradients an importance matrix is the second moment of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.fisher.criterion import Criterion, CrossEntropy, OutputLoss

ResidualName = Literal["empirical", "model", "expectation", "negated_logits"]


class Residual(ABC):
    """Turns a model's output into the loss whose gradient is taken."""

    name: ClassVar[str]
    zero_mean: ClassVar[bool] = False
    """Whether the expected gradient is zero by construction, so that it has no direction."""
    needs_output: ClassVar[bool] = True
    """Whether the loss must say what the model's output is."""

    @abstractmethod
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> Tensor | None:
        """The random numbers of a batch, made beforehand."""

    @abstractmethod
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        """The loss of each sample, shape ``(B,)``, as a function of the output."""

    def loss_weight(self, weight: Tensor) -> Tensor:
        """By what ``losses`` is multiplied where the loss has the weight ``w``."""
        return weight


class Empirical(Residual):
    """The training loss itself, at the data's own target: the empirical Fisher."""

    name = "empirical"
    needs_output = False

    @override
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> None:
        return None

    @override
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        return criterion(output, target)


class NegatedLogits(Residual):
    """``l(-f, y)``: EWC-DR (2603.18596), for classifiers whose own gradients vanish on what they know well."""

    name = "negated_logits"

    @override
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> None:
        return None

    @override
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        if not isinstance(criterion, CrossEntropy):
            raise ValueError(
                f"residual='negated_logits' with criterion={criterion.name!r}; it is defined for CrossEntropy alone"
            )
        return criterion(-output, target)


class FromModel(Residual):
    """The loss at a target drawn from the model's own distribution: the true Fisher, in expectation the GGN."""

    name = "model"
    zero_mean = True

    @override
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> Tensor:
        return loss.criterion.randomness(loss.target(model, batch), keys)

    @override
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        assert randomness is not None
        return criterion(output, criterion.sampled_target(output.detach(), randomness))

    @override
    def loss_weight(self, weight: Tensor) -> Tensor:
        return weight.sqrt()


class Expectation(Residual):
    """The true Fisher without sampling: one backward for each outcome (van de Ven 2025, 2502.11756: EXACT)."""

    name = "expectation"
    zero_mean = True

    @override
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> None:
        return None  # the outcomes are enumerated by Samples

    @override
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        assert randomness is not None
        return criterion.outcome_losses(output, randomness)

    @override
    def loss_weight(self, weight: Tensor) -> Tensor:
        return weight.sqrt()


class OfOutput(Residual):
    """``J^T dl/df(f')``: the model's Jacobian, with the residual that another output ``f'`` would leave.

    Args:
        output: ``(model, batch) -> f'``, of the shape of the model's output; not differentiated.
    """

    name = "of another output"

    def __init__(self, output: Callable[[Any, Any], Tensor]) -> None:
        self.output = output

    @override
    def randomness(self, loss: OutputLoss, model: Any, batch: Any, keys: Tensor) -> Tensor:
        return self.output(model, batch).detach()

    @override
    def losses(self, criterion: Criterion, output: Tensor, target: Tensor, randomness: Tensor | None) -> Tensor:
        assert randomness is not None
        residual: Tensor = torch.func.grad(lambda f: criterion(f, target).sum())(randomness)
        return (output * residual).flatten(1).sum(1)


RESIDUALS: dict[str, Residual] = {
    residual.name: residual for residual in (Empirical(), FromModel(), Expectation(), NegatedLogits())
}
