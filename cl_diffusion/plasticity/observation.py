"""What units do in a training forward pass, seen by hooks that leave it as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cl_diffusion.plasticity.units import Site, Units

Looked = Literal["firing", "activations", "gradients"]
Measure = Callable[[int, Tensor, list[int]], Tensor]
"""From the position of a layer, the values that pass by, and all axes but the units', to figures, units last."""


class Observer:
    """Figures of every unit, combined over the forward passes between ``attach`` and ``detach``.

    Only passes that record a graph in training mode are seen, so neither validation nor sampling nor a teacher is.

    Args:
        module: whose units.
        layers: the units, layer by layer.
        measure: of the values of one pass.
        combine: of the figures of two passes.
        look: at what says whether they fire, at activations, or at the loss's gradient with respect to these.

    Attributes:
        seen: the combined figures, ``(..., count)``, by position of the layer.
        examples: the first axis of what was seen, summed over passes, by layer.
        positions: values a unit had, summed over passes, by layer.

    Raises:
        ValueError: gradients are asked for of activations that no module gives or takes.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Units],
        measure: Measure,
        combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
        look: Looked = "firing",
    ) -> None:
        self.layers = layers
        self.measure = measure
        self.combine = combine
        self.look = look
        modules = dict(module.named_modules())
        self._hooks: list[Callable[[], RemovableHandle]] = []
        for number, of in enumerate(layers):
            site = (of.gates if look == "firing" else None) or of.activations
            if look == "gradients" and site.activation is not None:
                raise ValueError(
                    f"units {of.name!r}: no module gives or takes their activations, so that no gradient is seen; make "
                    f"the activation {of.activation} a module of its own, or use another score"
                )
            seen_at = modules[site.module]
            register: Any = seen_at.register_forward_pre_hook if site.side == "input" else seen_at.register_forward_hook
            self._hooks.append(partial(register, partial(self._look, number, site)))
        self._handles: list[RemovableHandle] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen: dict[int, Tensor] = {}
        self.examples: dict[int, int] = {}
        self.positions: dict[int, int] = {}

    def attach(self) -> None:
        """Look on from here."""
        self.detach()
        self._handles = [register() for register in self._hooks]

    def detach(self) -> None:
        """Look no more; no hook is left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _look(self, number: int, site: Site, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        if not (torch.is_grad_enabled() and module.training):
            return
        values: Tensor = inputs[0] if site.side == "input" else output
        if self.look == "gradients":
            if values.requires_grad:
                values.register_hook(lambda gradient: self._take(number, site, gradient))
            return
        values = values.detach()
        if site.activation is not None and self.look != "firing":
            with torch.no_grad():
                values = site.activation(values)
        self._take(number, site, values)

    def _take(self, number: int, site: Site, values: Tensor) -> None:
        count = self.layers[number].count
        axis = site.axis % values.ndim
        if values.shape[axis] != count:
            values = values.narrow(axis, site.start, count)
        figures = self.measure(number, values, [other for other in range(values.ndim) if other != axis])
        before = self.seen.get(number)
        self.seen[number] = figures if before is None else self.combine(before, figures)
        self.examples[number] = self.examples.get(number, 0) + values.shape[0]
        self.positions[number] = self.positions.get(number, 0) + values.numel() // count


def peaks(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """The largest value of each unit, which fires where that is positive; combined by ``torch.maximum``."""
    return values.amax(others)


def firings(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """How often each unit is positive, int64; a sum."""
    return (values > 0).sum(others)


def magnitudes(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """``sum |value|`` of each unit, float32; over ``positions`` it is the mean."""
    return values.abs().sum(others, dtype=torch.float32)
