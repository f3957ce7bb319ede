"""Resets of units in any LightningModule: what the methods have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from cl_diffusion.arguments import require_whole
from cl_diffusion.callbacks.plasticity.watched_units import FindsUnits, watched_units
from cl_diffusion.callbacks.regularization.preconditions import refuse_sharded
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.keys import derive_keys
from cl_diffusion.plasticity.observation import CalledRoots, Observer
from cl_diffusion.plasticity.reset import Initializer, Moments, kept, reset_units
from cl_diffusion.plasticity.units import Units
from cl_diffusion.processes import of_the_first

Anchors = Literal["kept", "released"]


class UnitResets(TaskCallback):
    """Watches the units of a module while it is trained, and makes some of them new after an optimizer step.

    A leaf says what is looked at (``observer``) and which units are due (``due``). Only training passes are seen, by
    hooks that are there for the length of a training step; what is seen in a step that the gradient scaler skips counts
    with the next.
    Losses and gradients are those without the callback, until a unit is reset. Several processes see the units of all
    of them, and draw the same weights. What is watched is in the checkpoint, and a resumed fit resets what the
    uninterrupted one does.

    Args:
        layers: patterns of the names of the layers whose units are watched; by default of all that are found.
        units: of the module, where they are known better than ``find_units`` can tell them.
        moments: what an optimizer's second moments become; see ``reset_units``.
        anchors: of regularisers in the same Trainer. ``"kept"``: a reset unit is held to what it was, as far as its
            importance goes, so that a penalty may pull it back; ``"released"``: the importance of its entries is zero
            from then on, and what they were is forgotten.
        initializer: of a layer, in place of its own ``reset_parameters``.
        seed: of the fresh weights.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints; two of a class in one Trainer need two names.

    Raises:
        ValueError: an argument is out of its range; as training starts: no unit is found whose weights are trained,
            with the reason for every layer, or a pattern fits none, or the optimizer is LBFGS; after the first step: a
            layer was called, and the module was not by whose forward pass its units were proved.
        RuntimeError: after the first step: no unit was seen in it.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        units: FindsUnits | Sequence[Units] | None = None,
        moments: Moments = "layer_mean",
        anchors: Anchors = "kept",
        initializer: Initializer | None = None,
        seed: int = 0,
        epochs_per_task: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(epochs_per_task)
        require_whole(0, seed=seed)
        if moments not in get_args(Moments):
            raise ValueError(f"moments={moments!r}; expected one of {', '.join(map(repr, get_args(Moments)))}")
        if anchors not in get_args(Anchors):
            raise ValueError(f"anchors={anchors!r}; expected one of {', '.join(map(repr, get_args(Anchors)))}")
        self.layers = layers
        self.given = units
        self.moments: Moments = moments
        self.anchors: Anchors = anchors
        self.initializer = initializer
        self.seed = seed
        self.name = name or type(self).__name__
        self.units: list[Units] = []
        self.resets: dict[str, int] = {}
        self._observer: Observer | None = None
        self._handles: list[RemovableHandle] = []
        self.steps = 0  # training batches that took a step
        self._stepped = self._seen = self._looking = False
        self._loaded: dict[str, Any] | None = None

    @cached_property
    @override
    def state_key(self) -> str:  # Lightning asks for it at every hook of every step
        return self._generate_state_key(name=self.name)

    @abstractmethod
    def observer(self, pl_module: LightningModule) -> Observer:
        """What is looked at."""

    @abstractmethod
    def begin(self, device: torch.device, state: dict[str, Any] | None) -> None:
        """Make ready for ``self.units``, from a checkpoint's state where there is one."""

    @abstractmethod
    def due(self, pl_module: LightningModule, observer: Observer) -> dict[int, Tensor]:
        """After a step: by position of a layer, the positions of its units that are to be reset."""

    @abstractmethod
    def watched(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""

    def looks(self, trainer: Trainer) -> bool:
        """Whether the step that begins is to be seen."""
        return True

    def before_reset(self, copies: Sequence[nn.Module], layer: int, chosen: Tensor) -> None:
        """These units of the module and of its averages will be made new."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_sharded(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.units and self._loaded is None:
            self._loaded = self.state_dict()  # of the fit before
        self._require_single_evaluations(trainer.optimizers)
        self.units = watched_units(pl_module, self.layers, self.given, trained=True)
        self._roots = CalledRoots(pl_module, self.units)
        self._warn_of_norms()
        self.resets = {units.name: 0 for units in self.units}
        state, self._loaded = self._loaded, None
        if state is not None:
            self._require_same(state["counts"])
            self.resets = dict(state["resets"])
            self.steps = state["steps"]
        self.begin(pl_module.device, None if state is None else state["watched"])
        self._observer = self.observer(pl_module)
        self._stepped = self._seen = False
        self._handles = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._looking = self.looks(trainer)
        if self._observer is not None and self._looking:
            self._observer.attach()
            if not self._seen:
                self._roots.attach()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._observer is None:
            return
        self._observer.detach()
        if not self._seen and self._looking:
            self._roots.check()
        if not self._stepped:
            return
        self._stepped = False
        self.steps += 1
        if self._observer.seen:
            self._seen = True
            for layer, chosen in self.due(pl_module, self._observer).items():
                if len(chosen):
                    self._reset(trainer, pl_module, layer, chosen)
        elif not self._seen and self._looking:
            raise RuntimeError(
                f"{type(self).__name__}: no unit of {', '.join(of.name for of in self.units)} was seen in a training "
                "step; hooks do not run in a module that was compiled before, or another copy of it is trained"
            )
        self._observer.clear()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._leave()

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        figures = {f"{self.name}/resets": float(sum(self.resets.values())), f"{self.name}/task": task + 1.0}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)

    @override
    def state_dict(self) -> dict[str, Any]:
        counts = {units.name: units.count for units in self.units}
        own = {"counts": counts, "resets": self.resets, "watched": self.watched(), "steps": self.steps}
        return {**super().state_dict(), **(own if self.units else self._loaded or {})}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict if "watched" in state_dict else None

    def _reset(self, trainer: Trainer, module: LightningModule, layer: int, chosen: Tensor) -> None:
        units = self.units[layer]
        averages = [c._average_model for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
        shadows = [average.module for average in averages if average is not None]
        self.before_reset([module, *shadows], layer, chosen)
        where = torch.tensor([layer])
        reset_units(
            module,
            units,
            chosen,
            seed=int(derive_keys(self.seed, where, draw=trainer.global_step, purpose="reset")) % 2**63,
            optimizers=trainer.optimizers,
            moments=self.moments,
            shadows=shadows,
            initializer=self.initializer,
            agree=of_the_first,
        )
        self.resets[units.name] += len(chosen)
        if self.anchors == "released":
            keep = kept(module, units, chosen)
            for other in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(other, Regularizer):
                    other.penalty.release(keep)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped = self._stepped or has_stepped(optimizer)

    def _leave(self) -> None:
        if self._observer is not None:
            self._observer.detach()
            self._roots.detach()
        for handle in self._handles:
            handle.remove()
        self._observer, self._handles = None, []

    def _require_single_evaluations(self, optimizers: Sequence[Optimizer]) -> None:
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
            raise ValueError(
                f"{type(self).__name__} counts the examples of each step, and LBFGS evaluates a batch several times in "
                "one; use another optimizer"
            )

    def _require_same(self, counts: dict[str, int]) -> None:
        now = {units.name: units.count for units in self.units}
        if counts != now:
            raise ValueError(
                f"the checkpoint's {type(self).__name__} watched units {counts}, and this one {now}; resume with the "
                "same network and layers"
            )

    def _warn_of_norms(self) -> None:
        if mixing := [units.mixes for units in self.units if units.mixes]:
            rank_zero_warn(
                f"{type(self).__name__}: the norm between layer and activation ({', '.join(mixing)}) takes its "
                "statistics over several units, so that a reset changes what the others give too"
            )


def has_stepped(optimizer: Optimizer) -> bool:
    """After its ``step``: whether there was a gradient, and a fused one has not skipped it for an overflow."""
    found = getattr(optimizer, "found_inf", None)
    moved = any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
    return moved and (found is None or not bool(found))
