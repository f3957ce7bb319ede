"""Penalties on the distance from weights, with the same weight on every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.regularizer import Mode, Regularizer
from cl_diffusion.callbacks.regularization.strength import Strength
from cl_diffusion.linalg import Identity, Parameters, Provenance, parameters


class IdentityPenalty(Regularizer):
    """``F_k`` is the identity on some parameters; a leaf says, at a task's start, where it is anchored.

    Args:
        strength: see ``Regularizer``, as all other arguments.
        name: in the log and in checkpoints.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        mode: ``"gradient"`` or ``"proximal"``.
    """

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength,
        name: str,
        epochs_per_task: int | None = None,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        mode: Mode = "gradient",
    ) -> None:
        super().__init__(strength, name, epochs_per_task, mode=mode)
        self.include = parameters.as_patterns(include)
        self.exclude = parameters.as_patterns(exclude)

    def selected(self, pl_module: LightningModule) -> Parameters:
        """The trainable parameters that take part."""
        return parameters.matching(parameters.trainable_parameters(pl_module), self.include, self.exclude)

    def hold(self, trainer: Trainer, pl_module: LightningModule, anchor: Parameters, task: int) -> None:
        """Anchor the identity there."""
        operator = Identity(anchor, provenance=Provenance(self.identity(), ({"task": task + 1},)))
        self.remember(trainer, pl_module, operator, task, anchor)

    @override
    def patterns(self) -> list[str]:
        return [*self.include, *self.exclude]

    @override
    def identity(self) -> dict[str, str]:
        return {"estimator": "identity", **parameters.described_selection(self.include, self.exclude)}

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        return None


class L2SP(IdentityPenalty):
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
        super().__init__(strength, name, epochs_per_task, include=include, exclude=exclude, mode=mode)
        self.first_task = first_task

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_start(trainer, pl_module, task)
        if self.enabled and (task > 0 or self.first_task):
            self.penalty.terms = []
            self.hold(trainer, pl_module, self.selected(pl_module), task)


class L2Init(IdentityPenalty):
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
        super().__init__(strength, name, epochs_per_task, include=include, exclude=exclude, mode=mode)

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_start(trainer, pl_module, task)
        if self.enabled:
            known = {name: tensor for term in self.terms for name, tensor in term.anchor.items()}
            anchor = {**self.selected(pl_module), **known}
            self.penalty.terms = []
            self.hold(trainer, pl_module, anchor, task)
