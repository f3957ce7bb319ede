"""Resets of units that have been silent for longer than their own firing explains."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import require_between, require_whole
from cl_diffusion.callbacks.plasticity.unit_resets import UnitResets
from cl_diffusion.plasticity.chains import FIRING
from cl_diffusion.plasticity.firing import FiringRates, InterFiringTimes
from cl_diffusion.plasticity.observation import Looked, Observer, firings, magnitudes, peaks
from cl_diffusion.plasticity.utility import dormancy
from cl_diffusion.processes import all_processes, summed, world_size

Variant = Literal["released", "counting"]
Firing = Literal["sign", "magnitude", "gradient"]


class SelfNormalizedResets(UnitResets):
    """Reset a unit once the time since it last fired is longer than all but ``eta`` of its own inter-firing times.

    Farias & Jozefiak 2024 (2410.20098), algorithm 1. The threshold is each unit's own, unlike that of ReDo or Continual
    Backprop, which is the network's; see ``InterFiringTimes``. Until thresholds are first taken from the histograms,
    after ``tasks_per_update`` tasks, a unit is reset when it has been silent for ``initial_age`` examples. Examples are
    those that pass by the unit: of a layer that is called twice in a step, twice a batch.

    Args:
        threshold: ``eta``, the rejection percentile, in (0, 1).
        initial_age: ``tau_0``, in examples.
        variant: ``"released"``, by the histogram of inter-firing times; or ``"counting"``, by the rate over positions,
            for convolutions and tokens (``FiringRates``; ``initial_age`` and ``tasks_per_update`` take no part).
        tasks_per_update: thresholds are taken from the histograms anew after so many tasks.
        max_age: no threshold is longer, in examples.
        firing: what it is to fire: ``"sign"``, to be positive; ``"magnitude"``, ``E|h|`` above ``floor`` times the
            layer's mean; ``"gradient"``, likewise ``E|dL/dh|``.
        floor: for those two; > 0 for ``"gradient"``.
        options: ``layers``, ``units``, ``moments``, ``anchors``, ``initializer``, ``seed``, ``epochs_per_task`` and
            ``name`` of ``UnitResets``.

    Raises:
        ValueError: an argument is out of its range, or two of them do not go together; as training starts: a layer's
            activation does not say by its sign whether it fires.
    """

    def __init__(
        self,
        threshold: float = 0.02,
        initial_age: int = 640,
        variant: Variant = "released",
        tasks_per_update: int = 8,
        max_age: int = 10**7,
        firing: Firing = "sign",
        floor: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        within = "a share of inter-firing times, in (0, 1)"
        require_between(math.nextafter(0, 1), math.nextafter(1, 0), within, threshold=threshold)
        require_whole(1, initial_age=initial_age, max_age=max_age, tasks_per_update=tasks_per_update)
        if initial_age > max_age:
            raise ValueError(f"initial_age={initial_age!r}, max_age={max_age!r}; expected initial_age <= max_age")
        if variant not in get_args(Variant) or firing not in get_args(Firing):
            raise ValueError(
                f"variant={variant!r}, firing={firing!r}; expected one of {', '.join(get_args(Variant))}, and one of "
                f"{', '.join(get_args(Firing))}"
            )
        if variant == "counting" and firing != "sign":
            raise ValueError(f"variant='counting' counts signs, and firing={firing!r}; use firing='sign'")
        require_between(0, math.inf, "a share of the layer's mean, >= 0", floor=floor)
        if (floor > 0) != (firing == "gradient") and firing != "magnitude":
            raise ValueError(
                f"floor={floor!r}, firing={firing!r}; expected 0 where firing is a sign, and > 0 where it is a "
                "gradient, which is not zero of a dead unit either"
            )
        self.threshold, self.initial_age, self.max_age = threshold, initial_age, max_age
        self.variant: Variant = variant
        self.firing: Firing = firing
        self.floor = floor
        self.tasks_per_update = tasks_per_update
        self.detector: InterFiringTimes | FiringRates | None = None
        self._batch = 1

    @override
    def observer(self, pl_module: LightningModule) -> Observer:
        if self.variant == "counting":
            return Observer(pl_module, self.units, firings)
        if self.firing == "sign":
            return Observer(pl_module, self.units, peaks, torch.maximum)
        look: Looked = "gradients" if self.firing == "gradient" else "activations"
        return Observer(pl_module, self.units, magnitudes, look=look)

    @override
    def begin(self, device: torch.device, state: dict[str, Any] | None) -> None:
        silent = [f"{of.name} ({of.activation or 'unknown'})" for of in self.units if of.activation not in FIRING]
        if silent and self.firing == "sign":
            raise ValueError(
                f"firing='sign', and the activation of {', '.join(silent)} is not known to be positive where it "
                "fires; leave these out by layers=..., use firing='magnitude' or 'gradient', or give units=... of an "
                "activation that is"
            )
        count = sum(of.count for of in self.units)
        if self.variant == "counting":
            self.detector = FiringRates(count, self.threshold)
        else:
            self.detector = InterFiringTimes(count, self.threshold, self.initial_age, self.max_age)
        if state is not None:
            mine = {"variant": self.variant, "max_age": self.max_age}
            if differing := {name: state[name] for name, own in mine.items() if state.get(name, own) != own}:
                raise ValueError(
                    f"{mine}, but the checkpoint of {type(self).__name__} was made with {differing}; resume with "
                    "these, or start without the checkpoint"
                )
            self.detector.load_state_dict(state)
            self._batch = state["batch"]
        self.detector.to(device)

    @override
    def due(self, pl_module: LightningModule, observer: Observer) -> dict[int, Tensor]:
        assert self.detector is not None
        device = self.detector.limits.device
        every = torch.cat([self._figures(observer, number, device) for number in range(len(self.units))])
        if self.variant == "released":
            every = ~(every <= self.floor)  # what is not a number is no silence
        if world_size() > 1:
            every = all_processes(every.to(torch.int64), largest=self.variant == "released").to(every.dtype)
        which = self.detector.observe(every, self._passed(observer, device))
        if which is None:
            return {}
        self.detector.reset(which)
        found, start = {}, 0
        for number, of in enumerate(self.units):
            found[number] = which[start : start + of.count].nonzero().flatten()
            start += of.count
        return found

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        super().on_task_end(trainer, pl_module, task)
        if self.detector is not None and (task + 1) % self.tasks_per_update == 0:
            self.detector.update(self._batch)

    @override
    def watched(self) -> dict[str, Any]:
        if self.detector is None:
            return {}
        made = {"batch": self._batch, "variant": self.variant, "max_age": self.max_age}
        return {**self.detector.state_dict(), **made}

    def _figures(self, observer: Observer, number: int, device: torch.device) -> Tensor:
        """How often they fire, or what is above ``floor`` where they do; 0 of a layer that took no part."""
        if number not in observer.seen:
            kind = torch.int64 if self.variant == "counting" else torch.float32
            return torch.zeros(self.units[number].count, dtype=kind, device=device)
        figures = observer.seen[number]
        return figures if self.firing == "sign" else dormancy(figures / observer.positions[number])

    def _passed(self, observer: Observer, device: torch.device) -> Tensor | int:
        """Examples of the step, or positions of each unit; of all processes."""
        per_layer = observer.positions if self.variant == "counting" else observer.examples
        numbers = summed([per_layer.get(number, 0) for number in range(len(self.units))], device)
        if self.variant == "released":
            self._batch = max(self._batch, *numbers)
            if len(set(numbers)) == 1:
                return numbers[0]
        counts = torch.tensor([of.count for of in self.units], device=device)
        return torch.tensor(numbers, device=device).repeat_interleave(counts)
