"""Resets of dormant units at a fixed threshold."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import require_between, require_whole
from cl_diffusion.callbacks.plasticity.unit_resets import UnitResets
from cl_diffusion.plasticity.observation import Observer, magnitudes
from cl_diffusion.plasticity.utility import dormancy
from cl_diffusion.processes import all_processes, summed

Score = Literal["magnitude", "gradient"]


class ReDo(UnitResets):
    """Every so many steps, reset the units whose share of their layer's mean activation is at most ``tau``.

    ``s_i = E|h_i| / (mean over the layer of E|h| + 1e-9)`` over the batch of that step, ``s_i <= tau`` (Sokar et al.
    2023, 2302.12902). With ``score="gradient"`` it is ``E|dL/dh_i|`` in the same place (GraMa), which tells units apart
    whose activations are never zero.

    Args:
        threshold: ``tau``, >= 0.
        every_n_steps: training batches that took a step, between two looks; only those looks cost anything.
        score: ``"magnitude"`` or ``"gradient"``.
        options: ``layers``, ``units``, ``moments``, ``anchors``, ``initializer``, ``seed``, ``epochs_per_task`` and
            ``name`` of ``UnitResets``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        threshold: float = 0.0,
        every_n_steps: int = 1000,
        score: Score = "magnitude",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        require_between(0, math.inf, "a share of the layer's mean, >= 0", threshold=threshold)
        require_whole(1, every_n_steps=every_n_steps)
        if score not in get_args(Score):
            raise ValueError(f"score={score!r}; expected one of {', '.join(get_args(Score))}")
        if score == "gradient" and threshold == 0:
            raise ValueError(
                "threshold=0.0 with score='gradient': what is read of a unit has a gradient, dead or not, so that none "
                "is ever reset; give a threshold > 0"
            )
        self.threshold = threshold
        self.every_n_steps = every_n_steps
        self.score: Score = score

    @override
    def observer(self, pl_module: LightningModule) -> Observer:
        look = "gradients" if self.score == "gradient" else "activations"
        return Observer(pl_module, self.units, magnitudes, look=look)  # type: ignore[arg-type]

    @override
    def begin(self, device: torch.device, state: dict[str, Any] | None) -> None:
        return

    @override
    def looks(self, trainer: Trainer) -> bool:
        return (self.steps + 1) % self.every_n_steps == 0

    @override
    def due(self, pl_module: LightningModule, observer: Observer) -> dict[int, Tensor]:
        positions = summed([observer.positions.get(n, 0) for n in range(len(self.units))], pl_module.device)
        found: dict[int, Tensor] = {}
        for number, sums in observer.seen.items():
            means = all_processes(sums) / max(1, positions[number])
            found[number] = (dormancy(means) <= self.threshold).nonzero().flatten()
        return found

    @override
    def watched(self) -> dict[str, Any]:
        return {}
