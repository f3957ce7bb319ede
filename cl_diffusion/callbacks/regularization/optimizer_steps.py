"""Every step of every optimizer of a fit, told to the regularisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import LBFGS, Optimizer

from cl_diffusion.callbacks.regularization.optimizer_step import OptimizerStep


class TakesSteps(Protocol):
    """What is told of a step, in this order; each method is called for all regularisers before the next one is."""

    def observe_gradient(self, step: OptimizerStep) -> None:
        """The task's own gradient, before any penalty is added."""

    def add_gradient(self, step: OptimizerStep) -> None:
        """Time to add the penalty's."""

    def solve(self, step: OptimizerStep) -> None:
        """The optimizer has moved the weights: time for a proximal step."""

    def observe_step(self, step: OptimizerStep) -> None:
        """The weights as the step leaves them."""


class OptimizerSteps:
    """Tells regularisers of a step before it, when its gradient is complete, and after it.

    The first is Lightning's ``on_before_optimizer_step``, which must be passed on to ``before``: after accumulation
    and the gradient scaler, and in automatic optimisation within the optimizer's ``step``. A raw optimizer that a
    manual optimisation steps itself does not call it; then it is the optimizer's own hook. A step that the scaler skips
    has no second part. Where a closure is evaluated again within one step (sharpness-aware minimisation), the penalty's
    gradient is added to each, and the first is what is observed.

    Attributes:
        seen: how many steps there were.

    Args:
        trainer: of the fit.
        module: that is fitted.
        regularizers: that are told, in this order.

    Raises:
        ValueError: an optimizer searches along a line by the loss, which the penalty is no part of, or maximises.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, regularizers: Sequence[TakesSteps]) -> None:
        self.trainer = trainer
        self.module = module
        self.regularizers = regularizers
        self.seen = 0
        self._current: OptimizerStep | None = None
        self._depth = 0  # of steps within steps: a subclass may call its base's
        self._unfinished = 0
        self._listened: dict[int, tuple[Optimizer, list[Any]]] = {}  # with the optimizer, lest another get its id
        for optimizer in trainer.optimizers:
            self._listen(optimizer)

    def next_batch(self) -> None:
        """Forget a step that was broken off, or skipped by the scaler; warn if steps do not end in their hooks."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        left = self._current is not None and self._current.has_gradient and not scaled
        self._unfinished = self._unfinished + 1 if left else 0
        if self._unfinished == 2:
            assert self._current is not None
            rank_zero_warn(
                f"{type(self._current.optimizer).__name__}.step does not call the hooks of torch.optim.Optimizer.step, "
                "so that proximal steps and Synaptic Intelligence miss it; do not replace `step` on the instance"
            )
        self._current, self._depth = None, 0

    def before(self, optimizer: Optimizer) -> None:
        """The optimizer's gradient is complete."""
        self.seen += 1
        if id(optimizer) not in self._listened:
            self._listen(optimizer)  # optimizers were replaced within the fit
        again = self._depth > 0 and self._is_current(optimizer)
        step = OptimizerStep(self.trainer, self.module, optimizer)
        if not again:
            self._current = step
        if not step.has_gradient:
            return
        if not again:
            self._tell(lambda regularizer: regularizer.observe_gradient(step))
        self._tell(lambda regularizer: regularizer.add_gradient(step))

    def remove(self) -> None:
        """Listen no more."""
        for _, handles in self._listened.values():
            for handle in handles:
                handle.remove()

    def _listen(self, optimizer: Optimizer) -> None:
        name = type(optimizer).__name__
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                f"{name} searches by the value of the loss, which a regulariser's penalty is no part of; use a "
                "first-order optimizer, such as Adam or SGD"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(f"{name}(maximize=True) would maximise the penalty too; minimise the negative instead")
        hooks = optimizer.register_step_pre_hook(self._begin), optimizer.register_step_post_hook(self._after)
        self._listened[id(optimizer)] = optimizer, list(hooks)

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer
        if closure is None and not self._is_current(optimizer):
            self.before(optimizer)  # a raw optimizer; Lightning's closure would call the trainer's hook

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth:
            return
        step, self._current = self._current, None
        if step is None or step.optimizer is not optimizer:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step was given a closure by hand, so that the regularisers have not seen "
                "its gradient; step an optimizer that self.optimizers() gives, or call backward and then step()"
            )
        if step.has_gradient and not step.skipped:
            self._tell(lambda regularizer: regularizer.solve(step))
            self._tell(lambda regularizer: regularizer.observe_step(step))

    def _is_current(self, optimizer: Optimizer) -> bool:
        return self._current is not None and self._current.optimizer is optimizer

    def _tell(self, what: Callable[[TakesSteps], None]) -> None:
        for regularizer in self.regularizers:
            what(regularizer)
