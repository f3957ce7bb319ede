"""Replacement of the least useful units, a few at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.arguments import require_between, require_whole
from cl_diffusion.callbacks.plasticity.unit_resets import UnitResets
from cl_diffusion.plasticity.observation import Observer
from cl_diffusion.plasticity.utility import LeastUseful, Utility, hand_over
from cl_diffusion.processes import all_processes, summed


class ContinualBackprop(UnitResets):
    """After every step, reset a share ``rate`` of the mature units of each layer: those of the lowest utility.

    Dohare et al., Loss of plasticity in deep continual learning, Nature 632 (2024); see ``LeastUseful``. What a unit
    gave to the next layer on average goes into that layer's bias, if that is trained, before it is forgotten.

    Args:
        rate: of replacement, a share of the mature units a step.
        maturity: steps for which a new unit is left alone.
        decay: of the running averages, in [0, 1).
        utility: ``"contribution"`` or ``"adaptable"``.
        options: ``layers``, ``units``, ``moments``, ``anchors``, ``initializer``, ``seed``, ``epochs_per_task`` and
            ``name`` of ``UnitResets``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        utility: Utility = "contribution",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        require_between(0, 1, "a share in [0, 1]", rate=rate)
        require_whole(0, maturity=maturity)
        require_between(0, math.nextafter(1, 0), "a number in [0, 1)", decay=decay)
        if utility not in get_args(Utility):
            raise ValueError(f"utility={utility!r}; expected one of {', '.join(get_args(Utility))}")
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.utility: Utility = utility
        self.useful: list[LeastUseful] = []

    @override
    def observer(self, pl_module: LightningModule) -> Observer:
        def measure(layer: int, values: Tensor, others: list[int]) -> Tensor:
            axis = next(axis for axis in range(values.ndim) if axis not in others)
            return self.useful[layer].measure(values, others, axis)

        return Observer(pl_module, self.units, measure, look="activations")

    @override
    def begin(self, device: torch.device, state: dict[str, Any] | None) -> None:
        self.useful = [LeastUseful(of, self.rate, self.maturity, self.decay, self.utility) for of in self.units]
        for useful in self.useful:
            if state is not None:
                useful.load_state_dict(state[useful.units.name])
            useful.to(device)

    @override
    def due(self, pl_module: LightningModule, observer: Observer) -> dict[int, Tensor]:
        tensors: dict[str, Tensor] = {name: p.detach() for name, p in pl_module.named_parameters()}
        positions = summed([observer.positions.get(n, 0) for n in range(len(self.units))], pl_module.device)
        return {
            number: self.useful[number].observe(all_processes(sums), positions[number], tensors)
            for number, sums in observer.seen.items()
        }

    @override
    def before_reset(self, copies: Sequence[nn.Module], layer: int, chosen: Tensor) -> None:
        useful = self.useful[layer]
        for module in copies:
            hand_over(module, self.units[layer], chosen, useful.corrected_mean)
        useful.reset(chosen)

    @override
    def watched(self) -> dict[str, Any]:
        return {useful.units.name: useful.state_dict() for useful in self.useful}
