"""One step of one optimizer, as the regularisers see it."""

from __future__ import annotations

from functools import cached_property

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.nn import Parameter
from torch.optim import Optimizer

from cl_diffusion.linalg import Parameters


class OptimizerStep:
    """Names, weights, gradients and learning rates before the step, and again after it.

    Args:
        trainer: that takes the step.
        module: whose parameters are known by name.
        optimizer: one of the module's; a parameter takes part in the step if it is in one of its groups and unfrozen.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.trainer = trainer
        self.module = module
        self.optimizer = optimizer
        self.position = next((i for i, other in enumerate(trainer.optimizers) if other is optimizer), 0)
        self.several = len(trainer.optimizers) > 1
        members = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.module_parameters = dict(module.named_parameters())
        self.trained: dict[str, Parameter] = {
            name: p for name, p in self.module_parameters.items() if p.requires_grad and id(p) in members
        }
        self.scale = _gradient_scale(trainer, optimizer)
        self.clipped = bool(trainer.gradient_clip_val) or is_overridden("configure_gradient_clipping", module)
        self.has_gradient = any(p.grad is not None for p in self.trained.values())
        """Whether the task's loss has left a gradient: a skipped training step leaves none, and takes no penalty."""

    @property
    def skipped(self) -> bool:
        """After the step: whether a fused optimizer has found, within it, that its scaled gradients overflowed."""
        found = getattr(self.optimizer, "found_inf", None)
        return found is not None and bool(found)

    @property
    def weights(self) -> Parameters:
        """All of the module's parameters as they are at the moment, without a graph."""
        return {name: p.detach() for name, p in self.module_parameters.items()}

    @cached_property
    def rates(self) -> dict[str, float]:
        """The learning rate of each parameter that takes part.

        Raises:
            ValueError: a group has none.
        """
        rates: dict[int, float] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            if group.get("lr") is None:
                raise ValueError(
                    f"mode='proximal' needs the step's learning rate, and group {number} of "
                    f"{type(self.optimizer).__name__} has lr={group.get('lr')!r}; use mode='gradient'"
                )
            rates |= dict.fromkeys((id(p) for p in group["params"]), float(group["lr"]))
        return {name: rates[id(p)] for name, p in self.trained.items()}

    @property
    def gradients(self) -> Parameters:
        """The gradients that there are, ``scale`` times too large."""
        return {name: p.grad for name, p in self.trained.items() if p.grad is not None}

    def gradients_for(self, names: frozenset[str]) -> Parameters:
        """The named parameters' gradients, zeros put where there is none.

        Raises:
            TypeError: a gradient is sparse.
        """
        found: Parameters = {}
        for name, parameter in self.trained.items():
            if name not in names:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found[name] = require_dense(name, parameter.grad)
        return found


def require_dense(name: str, gradient: Tensor) -> Tensor:
    """The gradient, if it is not sparse.

    Raises:
        TypeError: it is.
    """
    if gradient.is_sparse:
        raise TypeError(
            f"the gradient of {name!r} is sparse, and what a regulariser does with it is not; use sparse=False, or "
            f"exclude=[{name!r}] (of the regulariser; for EWC, of its estimator)"
        )
    return gradient


def _gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What gradients are multiplied by at this moment: a fused optimizer unscales them within its own step."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    if hasattr(optimizer, "grad_scale"):  # within a scaler's step, whosever it is; None where it has been unscaled
        return 1.0 if optimizer.grad_scale is None else float(optimizer.grad_scale)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED:
        return 1.0
    return float(scaler.get_scale())
