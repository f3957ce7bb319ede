"""Anchored quadratic penalties on the parameters of any LightningModule."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.optimizer_step import OptimizerStep
from cl_diffusion.callbacks.regularization.penalty_log import log_boundary, step_figures
from cl_diffusion.callbacks.regularization.preconditions import (
    refuse_several_proximal,
    refuse_sharded,
    require_parameters,
)
from cl_diffusion.callbacks.regularization.sample_gradients import estimate_on_task
from cl_diffusion.callbacks.regularization.stability import diverging
from cl_diffusion.callbacks.regularization.strength import Strength, as_strength
from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.linalg import Memory, Operator, Parameters, Penalty, Quadratic, parameters

Mode = Literal["gradient", "proximal"]


class Regularizer(TaskCallback):
    """``lambda * sum_k 1/2 (theta - theta_k)^T F_k (theta - theta_k)``, an anchored quadratic a task.

    A leaf says what ``F_k`` is (``importance``). Anchors are the raw training weights at the task's end.

    *Gradient mode*: the gradient, known in closed form, is added to ``.grad`` once an optimizer step: after
    accumulation and the gradient scaler, before clipping (in manual optimisation: when ``optimizer.step()`` is called).
    Each optimizer gets its own parameters' part. *Proximal mode*: after a step of learning rate ``eta`` the weights
    ``theta'`` become ``argmin 1/2 |theta - theta'|^2 / eta + penalty``, solved jointly for all anchors, each parameter
    with its own group's ``eta``; Adam's preconditioner is not in it. It is stable at every strength.

    Penalty, ratio of its gradient's norm to the task gradient's, their cosine, and the distance from each anchor are
    logged every ``log_every_n_steps`` of the Trainer.

    Args:
        strength: ``lambda``: a number >= 0, where 0 leaves training bit for bit as it is without the callback;
            ``"auto"``, which is ``TraceMatched()``; or a schedule such as ``WarmUp(100.0, steps=500)``.
        name: in the log and in checkpoints; two regularisers of one class in one Trainer need two names.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        mode: ``"gradient"`` or ``"proximal"``.
        memory: how old tasks are kept: ``"merged"``, ``"separate"`` or ``"online"``; see ``Penalty``.
        gamma: of the online memory, in [0, 1]; 1 by default.
        max_rank: low-rank terms keep so many eigenvalues; the trace that is dropped is logged.

    Raises:
        ValueError: an argument is out of its range, or two of them do not go together.
    """

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength,
        name: str,
        epochs_per_task: int | None = None,
        *,
        mode: Mode = "gradient",
        memory: Memory = "merged",
        gamma: float | None = None,
        max_rank: int | None = None,
    ) -> None:
        super().__init__(epochs_per_task)
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r}; expected one of {', '.join(map(repr, get_args(Mode)))}")
        if mode == "proximal" and memory == "separate":
            raise ValueError(
                "mode='proximal' with memory='separate'; several anchors must be solved jointly: use memory='merged'"
            )
        self.penalty = Penalty(memory, gamma, max_rank)
        self.strength = as_strength(strength)
        self.name = name
        self.mode = mode
        self._steps = 0
        self._warned = False
        self._current: OptimizerStep | None = None
        self._handles: list[Any] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def enabled(self) -> bool:
        """Whether there is a penalty at all."""
        return self.strength.final > 0

    @property
    def terms(self) -> list[Quadratic]:
        """What is remembered."""
        return self.penalty.terms

    @abstractmethod
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator | None:
        """``F_k`` of the task that has just ended, at the current weights; None where nothing is remembered then."""

    def observe_gradient(self, step: OptimizerStep) -> None:
        """Look at the task's own gradient, before any penalty is added."""

    def observe_step(self, step: OptimizerStep) -> None:
        """Look at the weights after the optimizer's step."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.enabled and stage == "fit":
            refuse_sharded(trainer, type(self).__name__)
            refuse_several_proximal([other.name for other in _active(trainer) if other.mode == "proximal"])

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_parameters(self.terms, pl_module, self.name)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._acts_for_all(trainer):
            self._handles = [opt.register_step_post_hook(self._after_step(trainer)) for opt in trainer.optimizers]

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._steps = 0

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        if self.enabled and (operator := self.importance(trainer, pl_module, task)) is not None:
            self.remember(trainer, pl_module, operator, task)

    def remember(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        operator: Operator,
        task: int,
        anchor: Parameters | None = None,
    ) -> None:
        """Hold the weights by ``operator``, beside what is held already; at ``anchor``, or where they are now."""
        operator, figures = self.strength.matched(
            operator, lambda other: float(estimate_on_task(trainer, pl_module, other, task, label="Trace").trace())
        )
        weights = parameters.trainable_parameters(pl_module) if anchor is None else anchor
        kept = parameters.clone(parameters.select(weights, operator.names))
        dropped = self.penalty.remember(Quadratic(operator, kept))
        if self.mode == "proximal" and not self.penalty.closed:
            kinds = ", ".join(term.operator.kind for term in self.terms)
            raise ValueError(f"mode='proximal': the terms ({kinds}) have no joint resolvent; use mode='gradient'")
        if self.penalty.max_rank is not None:
            figures |= {"dropped_trace": dropped, "kept_trace": sum(float(t.operator.trace()) for t in self.terms)}
        log_boundary(trainer, self.name, operator, task, figures)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._acts_for_all(trainer):
            return
        active = _active(trainer)
        step = OptimizerStep(trainer, pl_module, optimizer)
        self._current = step if step.has_gradient else None
        if self._current is None:
            return
        for regularizer in active:
            regularizer.observe_gradient(step)
            regularizer._log(trainer, pl_module, step)
        for regularizer in active:
            if regularizer.mode == "gradient":
                regularizer._add_gradient(step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.penalty.state(), "steps": self._steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in state_dict["terms"]:
            found = state["provenance"]["identity"].get("scale")
            if found != self.strength.scale.get("scale"):
                raise ValueError(
                    f"strength: the checkpoint's importance of {self.name!r} is scaled to {found or 'nothing'}, this "
                    f"one's to {self.strength.scale.get('scale', 'nothing')}; use the strength of that checkpoint"
                )
        self.penalty.load_state(state_dict)
        self._steps = state_dict["steps"]

    def _acts_for_all(self, trainer: Trainer) -> bool:
        """The first regulariser does: so each sees the task's gradient before any penalty is added."""
        return next(iter(_active(trainer)), None) is self

    def _add_gradient(self, step: OptimizerStep) -> None:
        strength = self._next_strength()
        if not self.terms or strength == 0:
            return
        self._warn_if_diverging(step, strength)
        self.penalty.add_gradient_(step.gradients_for(self.penalty.names), step.weights, strength * step.scale)

    def _solve(self, step: OptimizerStep) -> None:
        strength = self._next_strength()
        if not self.terms or strength == 0:
            return
        self.penalty.solve_(step.weights, {name: strength * rate for name, rate in step.rates.items()})

    def _next_strength(self) -> float:
        self._steps += 1
        return self.strength.at(self._steps - 1)

    def _after_step(self, trainer: Trainer) -> Any:
        def hook(optimizer: Optimizer, *_: Any) -> None:
            step, self._current = self._current, None
            if step is None or step.optimizer is not optimizer:
                return
            for regularizer in _active(trainer):
                if regularizer.mode == "proximal":
                    regularizer._solve(step)
            for regularizer in _active(trainer):
                regularizer.observe_step(step)

        return hook

    def _warn_if_diverging(self, step: OptimizerStep, strength: float) -> None:
        if self._warned or step.clipped:
            return
        if reason := diverging(step.optimizer, step.trained, self.penalty, strength):
            self._warned = True
            rank_zero_warn(
                f"{type(self).__name__} {self.name!r}: {reason}. Use mode='proximal', which is stable at every "
                "strength, or a smaller strength or learning rate"
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule, step: OptimizerStep) -> None:
        if not self.terms or not trainer._logger_connector.should_update_logs:
            return
        figures = step_figures(self.penalty, step, self.strength.at(self._steps))
        for key, value in figures.items():
            pl_module.log(f"{self.name}/{key}", value, on_step=True, on_epoch=False, batch_size=1)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._current = [], None


def _active(trainer: Trainer) -> list[Regularizer]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Regularizer) and callback.enabled]
