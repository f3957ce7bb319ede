"""Anchored quadratic penalties on the parameters of any LightningModule."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from cl_diffusion.callbacks.regularization.optimizer_step import OptimizerStep
from cl_diffusion.callbacks.regularization.optimizer_steps import OptimizerSteps
from cl_diffusion.callbacks.regularization.penalty_log import log_boundary, step_figures
from cl_diffusion.callbacks.regularization.preconditions import (
    refuse_several_proximal,
    refuse_sharded,
    require_names_of_their_own,
    require_parameters,
    require_same_importance,
    warn_of_idle_patterns,
)
from cl_diffusion.callbacks.regularization.sample_gradients import estimate_on_task, sample_loss, try_on_batch
from cl_diffusion.callbacks.regularization.stability import diverging
from cl_diffusion.callbacks.regularization.strength import Strength, as_strength
from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.fisher import FisherEstimator
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.fisher.sharded import reshard
from cl_diffusion.linalg import Memory, Operator, Parameters, Penalty, Quadratic, parameters
from cl_diffusion.phases import phase

Mode = Literal["gradient", "proximal"]


class Regularizer(TaskCallback):
    """``lambda * sum_k 1/2 (theta - theta_k)^T F_k (theta - theta_k)``, an anchored quadratic a task.

    A leaf says what ``F_k`` is (``importance``). Anchors are the raw training weights at the task's end.

    *Gradient mode*: the gradient, known in closed form, is added to ``.grad`` once an optimizer step: after
    accumulation and the gradient scaler, before clipping (in manual optimisation: when ``optimizer.step()`` is called).
    Each optimizer gets its own parameters' part; see ``OptimizerSteps``. *Proximal mode*: after a step of learning rate
    ``eta`` the weights ``theta'`` become ``argmin 1/2 |theta - theta'|^2 / eta + penalty``, solved jointly for all
    anchors, each parameter with its own group's ``eta``; Adam's preconditioner is not in it. It is stable at every
    strength.

    Penalty, ratio of its gradient's norm to the task gradient's, their cosine, and the distance from each anchor are
    logged every ``log_every_n_steps`` of the Trainer.

    Args:
        strength: ``lambda``: a number >= 0, where 0 leaves training bit for bit as it is without the callback;
            ``"auto"``, which is ``TraceMatched()``; or a schedule such as ``WarmUp(100.0, steps=500)``.
        name: in the log and in checkpoints; two regularisers in one Trainer need two names.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        mode: ``"gradient"`` or ``"proximal"``.
        memory: how old tasks are kept: ``"merged"``, ``"separate"`` or ``"online"``; see ``Penalty``.
        gamma: of the online memory, in [0, 1]; 1 by default.
        max_rank: low-rank terms keep so many eigenvalues; the trace that is dropped is logged.

    Raises:
        ValueError: an argument is out of its range, or two of them do not go together.
    """

    boundary_phase = "importance"

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
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r}; expected a name, for the log and for checkpoints")
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
        self._taken: dict[int, int] = {}  # steps of each optimizer in this task
        self._warned = False
        self._tried = False
        self._steps: OptimizerSteps | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def _called(self) -> str:
        return f"{type(self).__name__} {self.name!r}"

    @property
    def enabled(self) -> bool:
        """Whether there is a penalty at all."""
        return self.strength.largest > 0

    @property
    @override
    def needs_finite_weights(self) -> bool:
        return self.enabled

    @property
    def terms(self) -> list[Quadratic]:
        """What is remembered."""
        return self.penalty.terms

    shards: bool = True
    """Whether sharded parameters will do, given the estimators' consent."""

    @abstractmethod
    def importance(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Operator | None:
        """``F_k`` of the task that has just ended, at the current weights; None where nothing is remembered then."""

    def estimates(self, pl_module: LightningModule) -> list[tuple[FisherEstimator, Loss]]:
        """What is estimated at a boundary, and of which loss: here what the strength refers to, if anything."""
        reference = self.strength.reference
        return [] if reference is None else [(reference, sample_loss(pl_module, reference))]

    def identity(self) -> dict[str, str]:
        """What defines ``F_k``, as far as it is known before one is computed: a checkpoint must agree."""
        return {}

    def held(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter that is held."""
        return {name: tuple(t.shape) for term in self.terms for name, t in term.anchor.items()}

    def patterns(self) -> list[str]:
        """Patterns of parameter names that the user has given, each of which ought to fit something."""
        return []

    def excluding(self, names: list[str]) -> str:
        """How a user leaves parameters out of the importance."""
        return f"{type(self).__name__}(exclude={names})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require_names_of_their_own(_all(trainer))
        if self.enabled and stage == "fit":
            estimators = [estimator for estimator, _ in self.estimates(pl_module)]  # refuses a module without the loss
            refuse_sharded(trainer, type(self).__name__, estimators if self.shards else None)
            refuse_several_proximal([other.name for other in _active(trainer) if other.mode == "proximal"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        require_parameters(self.held(), pl_module, self._called, self.excluding)
        reshard(pl_module)
        self.penalty.deal_out(dict(pl_module.named_parameters()))
        if self.enabled:
            warn_of_idle_patterns(self.patterns(), pl_module, self._called)
        self._tried = False
        active = _active(trainer)
        if next(iter(active), None) is self:  # acts for all: each sees the task's gradient before any penalty is added
            self._steps = OptimizerSteps(trainer, pl_module, active)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        require_parameters(self.held(), pl_module, self._called, self.excluding)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._steps is not None:
            self._steps.next_batch()
        if self._tried or not self.enabled:
            return
        self._tried = True
        with phase(trainer, self.boundary_phase):
            for estimator, loss in self.estimates(pl_module):
                try_on_batch(trainer, pl_module, estimator, loss, batch, self._running, self._called)

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._taken = {}

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
        """Hold the weights by ``operator``, beside what is held already; at ``anchor``, or where they are now.

        Raises:
            ValueError: the proximal step of the terms has no closed form; nothing is held then that was not before.
        """
        scaled, figures = self.strength.matched(
            operator, lambda other: estimate_on_task(trainer, pl_module, other, task, label="Trace")
        )
        reshard(pl_module)
        weights = dict(pl_module.named_parameters()) if anchor is None else anchor
        kept, before = parameters.clone(parameters.select(weights, operator.names)), self.terms
        dropped = self.penalty.remember(Quadratic(scaled, kept))
        if self.mode == "proximal" and not self.penalty.closed:
            kinds = ", ".join(term.operator.kind for term in self.terms)
            self.penalty.terms = before
            raise ValueError(f"mode='proximal': the terms ({kinds}) have no joint resolvent; use mode='gradient'")
        if self.penalty.max_rank is not None:
            figures |= {"dropped_trace": dropped, "kept_trace": sum(float(t.operator.trace()) for t in self.terms)}
        log_boundary(trainer, self.name, operator, task, figures)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._steps is not None:
            self._steps.before(optimizer)

    def observe_gradient(self, step: OptimizerStep) -> None:
        """Look at the task's own gradient, before any penalty is added: for the log, if it is time."""
        if not self.terms or not step.trainer._logger_connector.should_update_logs:
            return
        for key, value in step_figures(self.penalty, step, self._strength_at(step)).items():
            step.module.log(f"{self.name}/{key}", value, on_step=True, on_epoch=False, batch_size=1)

    def add_gradient(self, step: OptimizerStep) -> None:
        """In gradient mode: add the penalty's gradient."""
        strength = self._strength_at(step)
        if self.mode == "gradient" and self.terms and strength > 0:
            self._warn_if_diverging(step, strength)
            self.penalty.add_gradient_(step.gradients_for(self.penalty.names), step.weights, strength * step.scale)

    def solve(self, step: OptimizerStep) -> None:
        """In proximal mode: solve for the weights."""
        strength = self._strength_at(step)
        if self.mode == "proximal" and self.terms and strength > 0:
            self.penalty.solve_(step.weights, {name: strength * rate for name, rate in step.rates.items()})

    def observe_step(self, step: OptimizerStep) -> None:
        """Look at the weights as the step leaves them."""
        self._taken[step.position] = self._taken.get(step.position, 0) + 1

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._steps is not None and not self._steps.seen:
            rank_zero_warn(
                f"{self._called} has seen no optimizer step in this fit, so that it did nothing: it sees those of the "
                f"optimizers that {type(pl_module).__name__}.configure_optimizers returns"
            )
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._release()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.penalty.state(), "steps_taken": dict(self._taken)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        require_same_importance(state_dict["terms"], self.identity(), self.strength.scale, self._called)
        self.penalty.load_state(state_dict)
        self._taken = dict(state_dict["steps_taken"])

    def _strength_at(self, step: OptimizerStep) -> float:
        return self.strength.at(self._taken.get(step.position, 0))

    def _warn_if_diverging(self, step: OptimizerStep, strength: float) -> None:
        if self._warned or step.clipped:
            return
        if reason := diverging(step.optimizer, step.trained, self.penalty, strength):
            self._warned = True
            rank_zero_warn(
                f"{self._called}: {reason}. Use mode='proximal', which is stable at every "
                "strength, or a smaller strength or learning rate"
            )

    def _release(self) -> None:
        if self._steps is not None:
            self._steps.remove()
            self._steps = None


def _all(trainer: Trainer) -> list[Regularizer]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Regularizer)]


def _active(trainer: Trainer) -> list[Regularizer]:
    return [regularizer for regularizer in _all(trainer) if regularizer.enabled]
