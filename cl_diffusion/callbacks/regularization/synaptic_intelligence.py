"""Synaptic Intelligence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.optimizer_step import OptimizerStep, require_dense
from cl_diffusion.callbacks.regularization.regularizer import Mode, Regularizer
from cl_diffusion.callbacks.regularization.strength import Strength
from cl_diffusion.fisher import PathIntegral
from cl_diffusion.linalg import Memory, Operator, Provenance, parameters


class SynapticIntelligence(Regularizer):
    """Synaptic Intelligence (Zenke et al. 2017, 1703.04200): importance is a parameter's share in the loss's decrease.

    It is gathered while a task is trained, from the task loss's gradient alone: before any penalty, of this or another
    regulariser, and before clipping. See ``PathIntegral`` for the formula. No sample is visited again, so it costs no
    pass at a boundary, and works for any module. Importances add up and the newest weights are the anchor, as published
    (``memory="online"`` with ``gamma=1``).

    Args:
        strength: see ``Regularizer``; the paper's ``c``.
        damping: the paper's ``xi``, in squared units of a parameter.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints.
        mode: ``"gradient"`` or ``"proximal"``; see ``Regularizer``.
        memory: see ``Regularizer``.
        gamma: of the online memory.

    Raises:
        ValueError: ``damping`` is not positive.
    """

    shards = False

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength = 1.0,
        damping: float = 0.1,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        epochs_per_task: int | None = None,
        name: str = "synaptic_intelligence",
        mode: Mode = "gradient",
        memory: Memory = "online",
        gamma: float | None = None,
    ) -> None:
        super().__init__(strength, name, epochs_per_task, mode=mode, memory=memory, gamma=gamma)
        PathIntegral({}, damping)  # refuses a damping that is none
        self.damping = damping
        self.include = parameters.as_patterns(include)
        self.exclude = parameters.as_patterns(exclude)
        self._path: PathIntegral | None = None

    @override
    def patterns(self) -> list[str]:
        return [*self.include, *self.exclude]

    @override
    def identity(self) -> dict[str, str]:
        selected = parameters.described_selection(self.include, self.exclude)
        return {**PathIntegral({}, self.damping).identity, **selected}

    @override
    def held(self) -> dict[str, tuple[int, ...]]:
        path = {} if self._path is None else {name: tuple(t.shape) for name, t in self._path.start.items()}
        return {**path, **super().held()}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._path is not None:
            self._path.to(pl_module.device)

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_start(trainer, pl_module, task)
        if self.enabled:
            weights = parameters.matching(parameters.trainable_parameters(pl_module), self.include, self.exclude)
            self._path = PathIntegral(weights, self.damping)

    @override
    def observe_gradient(self, step: OptimizerStep) -> None:
        super().observe_gradient(step)
        if self._path is not None:
            gradients = {n: require_dense(n, g) for n, g in step.gradients.items() if n in self._path.start}
            self._path.before_step(gradients, step.weights, step.scale)

    @override
    def observe_step(self, step: OptimizerStep) -> None:
        super().observe_step(step)
        if self._path is not None:
            self._path.after_step(step.weights)

    @override
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator | None:
        if self._path is None:
            return None
        operator = self._path.operator(dict(pl_module.named_parameters()), record={"task": task + 1})
        operator.provenance = Provenance(self.identity(), operator.provenance.record)
        return operator

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_end(trainer, pl_module, task)
        self._path = None

    @override
    def state_dict(self) -> dict[str, Any]:
        path = None if self._path is None else {**self._path.state(), "identity": self.identity()}
        return {**super().state_dict(), "path": path}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        path = state_dict["path"]
        if path is not None and path["identity"] != self.identity():
            raise ValueError(
                f"{self._called}: the checkpoint's path is that of {path['identity']}, this one's would be of "
                f"{self.identity()}; use the arguments that the checkpoint was made with"
            )
        self._path = None if path is None else PathIntegral.from_state(path)
