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
        examples: that passed by, of each pass, by layer; a layer that is called twice in a step sees twice as many.
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
        self._passed: set[int] = set()  # layers that were seen in a forward pass, not only in one that backward repeats
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
        self._passed.clear()

    def detach(self) -> None:
        """Look no more; no hook is left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _look(self, number: int, site: Site, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        if not (torch.is_grad_enabled() and module.training):
            return
        if torch._C._current_graph_task_id() < 0:
            self._passed.add(number)
        elif number in self._passed:  # a checkpointed part, which backward computes once more
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
        if site.axes not in (None, values.ndim):
            raise ValueError(
                f"units {self.layers[number].name!r}: {site.module} gives values of shape {tuple(values.shape)}, where "
                f"{site.axes} axes are expected; leave the layer out by layers=..., or give units=..."
            )
        axis = site.axis % values.ndim
        if values.shape[axis] != count:
            values = values.narrow(axis, site.start, count)
        figures = self.measure(number, values, [other for other in range(values.ndim) if other != axis])
        before = self.seen.get(number)
        self.seen[number] = figures if before is None else self.combine(before, figures)
        batch = values.shape[site.batch] if values.ndim > site.batch + 1 else 1
        self.examples[number] = self.examples.get(number, 0) + batch
        self.positions[number] = self.positions.get(number, 0) + values.numel() // count


class CalledRoots:
    """Whether what was proved of a module's forward pass is what was run: that the module itself was called.

    Args:
        module: that has them.
        layers: the units, layer by layer.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Units]) -> None:
        self.layers = [of for of in layers if of.proved_of]
        self.module = module
        self._called: set[str] = set()
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Look on from here."""
        self.detach()
        modules = dict(self.module.named_modules())
        for name in {name for of in self.layers for name in (of.proved_of, of.name)}:
            hook = partial(self._note, name)
            self._handles.append(modules[name].register_forward_hook(hook))

    def detach(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check(self) -> None:
        """Look no more.

        Raises:
            ValueError: a layer was called, and the module was not of which its units were proved.
        """
        self.detach()
        for of in self.layers:
            if of.name in self._called and of.proved_of not in self._called:
                raise ValueError(
                    f"units {of.name!r} are proved of the forward pass of {of.proved_of!r}, which was not called, "
                    "while the layer was: its parts are used one by one; leave it out by layers=..., or give units=..."
                )

    def _note(self, name: str, *_: Any) -> None:
        self._called.add(name)


def peaks(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """The largest value of each unit, which fires where that is positive; combined by ``torch.maximum``."""
    return values.amax(others)


def firings(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """How often each unit is positive, int64; a sum."""
    return (values > 0).sum(others)


def magnitudes(layer: int, values: Tensor, others: list[int]) -> Tensor:
    """``sum |value|`` of each unit, float32; over ``positions`` it is the mean."""
    return values.abs().sum(others, dtype=torch.float32)
