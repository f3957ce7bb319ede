"""Whether a network still learns, and how much of it is in use, task by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from cl_diffusion.callbacks.diagnostics.logged_pictures import log_figure
from cl_diffusion.callbacks.plasticity.watched_units import FindsUnits, watched_units
from cl_diffusion.callbacks.regularization.preconditions import refuse_sharded
from cl_diffusion.callbacks.task import TaskCallback, task_stream
from cl_diffusion.metrics.plasticity import effective_rank, stable_rank
from cl_diffusion.plasticity.chains import FIRING
from cl_diffusion.plasticity.observation import Observer, peaks
from cl_diffusion.plasticity.units import Units
from cl_diffusion.processes import all_processes
from cl_diffusion.report.figures import by_layer, draw_plasticity
from cl_diffusion.whole_files import write_rows

_FEATURES = 1024
_BATCHES = 64
"""So many at the end of an epoch are looked at for them."""


class PlasticityMetrics(TaskCallback):
    """``plasticity.csv``: at the end of each task, of each layer, how much of it is in use, and how far it moves.

    Columns ``task,layer,figure,value``, tasks from 1:

    - ``dead``: the share of the layer's units that have fired in no batch of the task's last epoch;
    - ``effective_rank``, ``stable_rank``: of the activations of the epoch's last 64 batches, the last 1024 rows at
      most, positions of an image or a sequence being rows of their own; of several processes, the first one's;
    - ``weight_norm``: of the weights that come in, the root of the mean square of an entry;
    - ``update_norm``: of their change by the optimizer in the epoch's last step, likewise;
    - with layer ``""`` what the module says in ``task_figures()``, such as its online accuracy.

    Training is bit for bit the same with and without it: nothing is reset. Where it is not known beforehand which epoch
    is a task's last, every epoch is looked at.

    Args:
        layers: patterns of layers' names; all that have units where not given.
        units: see ``UnitResets``.
        epochs_per_task: see ``TaskCallback``.

    Raises:
        ValueError: as training starts: a pattern fits none. Where no unit is found there is a warning, and the module's
            own figures alone.
    """

    boundary_phase = "evaluation"

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        units: FindsUnits | Sequence[Units] | None = None,
        epochs_per_task: int | None = None,
    ) -> None:
        super().__init__(epochs_per_task)
        self.layers = layers
        self.given = units
        self.units: list[Units] = []
        self.rows: list[tuple[int, str, str, float]] = []
        self._firing: Observer | None = None
        self._values: Observer | None = None
        self._before: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self._update: dict[str, float] = {}
        self._looked: dict[str, dict[str, Tensor]] = {}  # of a checkpoint
        self._handles: list[RemovableHandle] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        refuse_sharded(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.units = watched_units(pl_module, self.layers, self.given, or_none=True)
        self._firing = Observer(pl_module, self.units, peaks, torch.maximum)
        self._values = Observer(
            pl_module, self.units, _rows, lambda old, new: torch.cat([old, new])[-_FEATURES:], look="activations"
        )
        for observer, name in ((self._firing, "firing"), (self._values, "values")):
            observer.seen = {number: seen.to(pl_module.device) for number, seen in self._restored_seen(name)}
        self._looked = {}
        self._handles = [optimizer.register_step_post_hook(self._measure_update) for optimizer in trainer.optimizers]
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._forget()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._running is None or not self._may_be_last(trainer) or self._firing is None or self._values is None:
            return
        self._firing.attach()
        left = trainer.num_training_batches - batch_idx  # infinite of a loader without a length
        if left <= _BATCHES or left == math.inf:
            self._values.attach()
        if left <= 1 or left == math.inf:
            self._now = self._incoming(pl_module)
            self._before = {name: weights.clone() for name, weights in self._now.items()}

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for observer in (self._firing, self._values):
            if observer is not None:
                observer.detach()
        self._before = {}

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
        found = self._figures(pl_module)
        self._forget()
        self.rows += [(task + 1, layer, name, value) for layer, of in found.items() for name, value in of.items()]
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: every process takes part
        if not trainer.is_global_zero:
            return
        rows = ((task, layer, name, repr(value)) for task, layer, name, value in self.rows)
        write_rows(folder / "plasticity.csv", ("task", "layer", "figure", "value"), rows)
        named = {f"{layer or 'task'}/{name}": value for layer, of in found.items() for name, value in of.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        log_figure(trainer, "plasticity", lambda: draw_plasticity(by_layer(self.rows)))
        said = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.get("", {}).items())
        dead = ", ".join(f"{layer} {of['dead']:.0%}" for layer, of in found.items() if "dead" in of)
        rank_zero_info(f"task {task + 1}: {said}{'; ' if said else ''}dead units: {dead or 'not told'}")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Within an epoch, what was seen in it too."""
        seen = {
            name: {self.units[number].name: of for number, of in observer.seen.items()}
            for name, observer in (("firing", self._firing), ("values", self._values))
            if observer is not None
        }
        return {**super().state_dict(), "rows": self.rows, "seen": seen, "update": self._update}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rows = [tuple(row) for row in state_dict["rows"]]
        self._looked, self._update = state_dict["seen"], dict(state_dict["update"])

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Of all processes, what the first one writes."""
        firing = checkpoint["callbacks"][self.state_key]["seen"].get("firing", {})
        for name, peak in firing.items():
            firing[name] = all_processes(peak.clone(), largest=True)

    def _restored_seen(self, name: str) -> list[tuple[int, Tensor]]:
        of = self._looked.get(name, {})
        return [(number, of[units.name]) for number, units in enumerate(self.units) if units.name in of]

    def _forget(self) -> None:
        for observer in (self._firing, self._values):
            if observer is not None:
                observer.clear()

    def _leave(self) -> None:
        for observer in (self._firing, self._values):
            if observer is not None:
                observer.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _may_be_last(self, trainer: Trainer) -> bool:
        """Whether the task may end with this epoch; where that is not known beforehand, any epoch may be the last."""
        stream = task_stream(trainer)
        if stream is not None:
            return stream.task_at(trainer.current_epoch + 1) != stream.task_at(trainer.current_epoch)
        return self.epochs_per_task is None or self._epochs + 1 >= self.epochs_per_task

    def _measure_update(self, *_: Any) -> None:
        """After an optimizer's step, before anything else changes the weights."""
        for name, before in self._before.items():
            self._update[name] = _size(self._now[name] - before)

    def _incoming(self, module: LightningModule) -> dict[str, Tensor]:
        tensors = dict(module.named_parameters())
        return {of.name: tensors[of.incoming[0].tensor].detach() for of in self.units}

    def _figures(self, module: LightningModule) -> dict[str, dict[str, float]]:
        assert self._firing is not None
        assert self._values is not None
        own = getattr(module, "task_figures", None)
        found: dict[str, dict[str, float]] = {"": dict(own())} if callable(own) else {}
        weights = self._incoming(module)
        for number, of in enumerate(self.units):
            figures = found.setdefault(of.name, {})
            if number in self._firing.seen and of.activation in FIRING:
                fired = ~(self._firing.seen[number] <= 0)  # what is not a number is no silence
                alive = all_processes(fired.to(torch.int64), largest=True)
                figures["dead"] = float((alive == 0).double().mean())
            if number in self._values.seen:
                features = self._values.seen[number].float().cpu()
                figures["effective_rank"] = effective_rank(features)
                figures["stable_rank"] = stable_rank(features)
            figures["weight_norm"] = _size(weights[of.name])
            if of.name in self._update:
                figures["update_norm"] = self._update[of.name]
        return found


def _rows(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """Activations as rows, units last; the last of them."""
    axis = next(axis for axis in range(values.ndim) if axis not in others)
    return values.movedim(axis, -1).flatten(0, -2)[-_FEATURES:]


def _size(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
