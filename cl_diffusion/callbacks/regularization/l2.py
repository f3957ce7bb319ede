"""Penalties on the distance from weights, with the same weight on every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.regularizer import Mode, Regularizer
from cl_diffusion.callbacks.regularization.strength import Strength
from cl_diffusion.linalg import Identity, Parameters, Provenance, parameters


class L2SP(Regularizer):
    """``lambda/2 |theta - theta_k|^2``, ``theta_k`` the weights that the task started from (1802.01483).

    So a pre-trained model is held to what it was trained to. Each task replaces the anchor.

    Args:
        strength: see ``Regularizer``.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        first_task: whether the first task is held to its start, as for a pre-trained model; a model that starts from
            random weights is better left free.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints.
        mode: ``"gradient"`` or ``"proximal"``; see ``Regularizer``.
    """

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength = 1.0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        first_task: bool = True,
        epochs_per_task: int | None = None,
        name: str = "l2_sp",
        mode: Mode = "gradient",
    ) -> None:
        super().__init__(strength, name, epochs_per_task, mode=mode)
        self.include = parameters.as_patterns(include)
        self.exclude = parameters.as_patterns(exclude)
        self.first_task = first_task

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_start(trainer, pl_module, task)
        if self.enabled and (task > 0 or self.first_task):
            self.penalty.terms = []
            selected = _selected(pl_module, self.include, self.exclude)
            self.remember(trainer, pl_module, _operator(selected, self.identity(), task), task)

    @override
    def patterns(self) -> list[str]:
        return [*self.include, *self.exclude]

    @override
    def identity(self) -> dict[str, str]:
        return {"estimator": "identity", **parameters.described_selection(self.include, self.exclude)}

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        return None


class L2Init(Regularizer):
    """``lambda/2 |theta - theta_0|^2``: held to the initial weights at all times (Kumar et al. 2023, 2308.11958).

    It keeps a network plastic rather than its knowledge. A parameter that comes later is held to its own first value.

    Args:
        strength: see ``Regularizer``.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints.
        mode: ``"gradient"`` or ``"proximal"``; see ``Regularizer``.
    """

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength = 1e-2,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        epochs_per_task: int | None = None,
        name: str = "l2_init",
        mode: Mode = "gradient",
    ) -> None:
        super().__init__(strength, name, epochs_per_task, mode=mode)
        self.include = parameters.as_patterns(include)
        self.exclude = parameters.as_patterns(exclude)

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_start(trainer, pl_module, task)
        if self.enabled:
            known = {name: tensor for term in self.terms for name, tensor in term.anchor.items()}
            anchor = {**_selected(pl_module, self.include, self.exclude), **known}
            self.penalty.terms = []
            self.remember(trainer, pl_module, _operator(anchor, self.identity(), task), task, anchor)

    @override
    def patterns(self) -> list[str]:
        return [*self.include, *self.exclude]

    @override
    def identity(self) -> dict[str, str]:
        return {"estimator": "identity", **parameters.described_selection(self.include, self.exclude)}

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        return None


def _selected(module: LightningModule, include: Sequence[str], exclude: Sequence[str]) -> Parameters:
    return parameters.matching(parameters.trainable_parameters(module), include, exclude)


def _operator(weights: Parameters, identity: dict[str, str], task: int) -> Identity:
    return Identity(weights, provenance=Provenance(identity, ({"task": task + 1},)))
