"""One step of one optimizer, as the regularisers see it."""

from __future__ import annotations

from functools import cached_property

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from cl_diffusion.linalg import Parameters


class OptimizerStep:
    """Names, weights, gradients and learning rates at ``on_before_optimizer_step``, and again after the step.

    Args:
        trainer: that takes the step.
        module: whose parameters are known by name.
        optimizer: one of the module's; a parameter takes part in the step if it is in one of its groups and unfrozen.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.position = next((i for i, other in enumerate(trainer.optimizers) if other is optimizer), 0)
        self.several = len(trainer.optimizers) > 1
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        self.module_parameters = dict(module.named_parameters())
        self.trained: dict[str, Parameter] = {
            name: p for name, p in self.module_parameters.items() if p.requires_grad and id(p) in rates
        }
        self.rates = {name: rates[id(p)] for name, p in self.trained.items()}
        self.scale = _gradient_scale(trainer, optimizer)
        self.clipped = bool(trainer.gradient_clip_val)

    @property
    def has_gradient(self) -> bool:
        """Whether the task's loss has left a gradient: a skipped training step leaves none, and takes no penalty."""
        return any(p.grad is not None for p in self.trained.values())

    @cached_property
    def weights(self) -> Parameters:
        """All of the module's parameters as they are at the moment, without a graph."""
        return {name: p.detach() for name, p in self.module_parameters.items()}

    @property
    def like(self) -> Tensor:
        """One of the weights: where they are, and in which precision."""
        return next(iter(self.weights.values()))

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
            if parameter.grad.is_sparse:
                raise TypeError(
                    f"the gradient of {name!r} is sparse, and a penalty's is not; use sparse=False, or leave the "
                    "parameter out of the importance (exclude=[...])"
                )
            found[name] = parameter.grad
        return found


def _gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What gradients are multiplied by at this moment: a fused optimizer unscales them within its own step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        return float(scaler.get_scale())
    return 1.0
