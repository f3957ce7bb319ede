"""A quadratic penalty on the parameters, added to the gradient once an optimizer step."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.linalg import Operator, Quadratic, merge, parameters


class Regularizer(TaskCallback):
    """``strength * sum_k 1/2 (theta - theta_k)^T F_k (theta - theta_k)``, an anchored quadratic a task.

    A leaf says what ``F_k`` is. The gradient is known in closed form and is added to ``.grad`` before the optimizer
    step: once a step, after accumulation and after the gradient scaler, before clipping. Anchors are the raw training
    weights at the task's end. Diagonal terms are kept merged (same gradient, constant memory), others side by side.

    Args:
        strength: ``lambda``, finite and >= 0; 0 leaves training bit for bit as it is without the callback.
        name: in the log and in checkpoints; two regularisers of one class in one Trainer need two names.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).

    Raises:
        ValueError: ``strength`` is negative or not finite.
    """

    def __init__(self, strength: float, name: str, epochs_per_task: int | None = None) -> None:
        super().__init__(epochs_per_task)
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength={strength!r}; expected a finite number >= 0 (0 switches the penalty off)")
        self.strength = float(strength)
        self.name = name
        self.terms: list[Quadratic] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @abstractmethod
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator:
        """``F_k`` of the task that has just ended, at the current weights."""

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        if self.strength == 0:
            return
        operator = self.importance(trainer, pl_module, task)
        weights = parameters.trainable_parameters(pl_module)
        anchor = parameters.clone(parameters.select(weights, operator.names))
        self.terms = merge([*self.terms, Quadratic(operator, anchor)])

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.terms or self.strength == 0:
            return
        weights = {name: parameter.detach() for name, parameter in pl_module.named_parameters()}
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {n: p for n, p in pl_module.named_parameters() if p.requires_grad and id(p) in stepped}
        factor = self.strength * _gradient_scale(trainer, optimizer)
        for term in self.terms:
            gradient = {name: g for name, g in term.gradient(weights).items() if name in trained}
            for name in gradient:
                if trained[name].grad is None:
                    trained[name].grad = torch.zeros_like(trained[name])
            parameters.add_({name: cast("Tensor", trained[name].grad) for name in gradient}, gradient, factor)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "terms": [term.state() for term in self.terms]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.terms = [Quadratic.from_state(state) for state in state_dict["terms"]]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.terms = [term.to(pl_module.device) for term in self.terms]


def _gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What gradients are multiplied by at this moment: a fused optimizer unscales them within its own step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        return float(scaler.get_scale())
    return 1.0
