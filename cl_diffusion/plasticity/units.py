"""Units of a network: explicit slices of its parameters, never inferred from the order of its modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Slice:
    """What each unit has of one parameter or buffer: ``width`` consecutive entries along ``axis``, unit after unit.

    Args:
        tensor: its name in the module.
        axis: along which the units lie.
        width: entries of a unit; H*W where a convolution's channels are flattened into a linear layer.
        start: where the first unit begins.
    """

    tensor: str
    axis: int = 0
    width: int = 1
    start: int = 0

    @property
    def owner(self) -> str:
        """The module that the tensor belongs to."""
        return self.tensor.rpartition(".")[0]

    def of(self, tensor: Tensor, count: int) -> Tensor:
        """A view of the tensor whose first axis are the units: ``(count, width, ...)``."""
        part: Tensor = tensor.narrow(self.axis, self.start, count * self.width)
        split: Tensor = part.unflatten(self.axis, (count, self.width))
        return split.movedim((self.axis, self.axis + 1), (0, 1))


@dataclass(frozen=True)
class Site:
    """Where the units' values pass by in a forward pass.

    Args:
        module: by name.
        side: its first input, or its output.
        axis: along which the units lie.
        start: where they begin.
        batch: the axis of the examples.
        axes: how many there have to be; None where any number will do.
        activation: what is still to be applied to what passes by; None where nothing is.
    """

    module: str
    side: Literal["input", "output"] = "output"
    axis: int = 1
    start: int = 0
    batch: int = 0
    axes: int | None = None
    activation: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Units:
    """The units of one layer.

    Args:
        name: of the layer whose outputs they are.
        count: how many.
        incoming: what is drawn anew in a reset, each tensor by its own module's initialiser.
        outgoing: what is set to zero: the columns of what reads them.
        activations: where ``h``, what is handed on, is seen.
        gates: where that is seen whose sign says whether a unit fires; None where that is ``h`` itself.
        shifts: set to zero: biases, the beta of a norm, a running mean.
        scales: set to one: the gamma of a norm, a running variance.
        next_bias: of the layer that reads them, which can take over what a unit contributed on average.
        activation: what the activation is called, for messages.
        mixes: of the norm between layer and activation whose statistics other units share; empty where none is.
        proved_of: the module by whose forward pass they were found; empty where it is the whole, or they were given.

    Raises:
        ValueError: there are none, or nothing comes in or goes out.
    """

    name: str
    count: int
    incoming: Sequence[Slice]
    outgoing: Sequence[Slice]
    activations: Site
    gates: Site | None = None
    shifts: Sequence[Slice] = ()
    scales: Sequence[Slice] = ()
    next_bias: str | None = None
    activation: str = ""
    mixes: str = ""
    proved_of: str = ""

    def __post_init__(self) -> None:
        if self.count < 1 or not self.incoming or not self.outgoing:
            raise ValueError(
                f"units {self.name!r}: count={self.count}, {len(self.incoming)} incoming and {len(self.outgoing)} "
                "outgoing slices; expected at least one of each"
            )

    @property
    def slices(self) -> list[Slice]:
        """All of them."""
        return [*self.incoming, *self.outgoing, *self.shifts, *self.scales]

    def check(self, module: nn.Module) -> None:
        """That they are there.

        Raises:
            ValueError: the module lacks a tensor or site, or a slice reaches beyond its tensor.
        """
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for part in self.slices:
            if part.tensor not in tensors:
                raise ValueError(f"units {self.name!r}: the module has no parameter or buffer {part.tensor!r}")
            length, needed = tensors[part.tensor].shape[part.axis], part.start + self.count * part.width
            if needed > length:
                raise ValueError(
                    f"units {self.name!r}: {needed} entries of {part.tensor!r} along axis {part.axis} are asked for, "
                    f"and there are {length}"
                )
        modules = dict(module.named_modules())
        for site in filter(None, (self.activations, self.gates)):
            if site.module not in modules:
                raise ValueError(f"units {self.name!r}: the module has no submodule {site.module!r}")


def prefixed(prefix: str, found: Units) -> Units:
    """The same units as the module's parent names them."""
    if not prefix:
        return found

    def named(name: str) -> str:
        return f"{prefix}.{name}"

    def moved(parts: Sequence[Slice]) -> tuple[Slice, ...]:
        return tuple(replace(part, tensor=named(part.tensor)) for part in parts)

    return replace(
        found,
        name=named(found.name),
        incoming=moved(found.incoming),
        outgoing=moved(found.outgoing),
        activations=replace(found.activations, module=named(found.activations.module)),
        gates=None if found.gates is None else replace(found.gates, module=named(found.gates.module)),
        shifts=moved(found.shifts),
        scales=moved(found.scales),
        next_bias=None if found.next_bias is None else named(found.next_bias),
        mixes=named(found.mixes) if found.mixes else "",
        proved_of=named(found.proved_of).rstrip("."),
    )
