"""A diagonal matrix on parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.operator import Operator, Step, check_factor, steps_by_name
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance
from cl_diffusion.linalg.shards import largest, local, summed


class Diagonal(Operator):
    """``F = diag(f)``: each parameter has an importance of its own (Kirkpatrick et al. 2017, 1612.00796, eq. 3).

    Args:
        values: ``f``, one entry a parameter entry, finite and >= 0.
        provenance: what the operator is an estimate of.

    Raises:
        ValueError: an entry is negative or not finite; the message names the parameter.

    Example:
        >>> import torch
        >>> operator = Diagonal({"w": torch.tensor([1.0, 4.0])})
        >>> d = {"w": torch.tensor([2.0, 0.5])}
        >>> float(operator.quadratic(d)), float(operator.trace())
        (5.0, 5.0)
        >>> operator.resolvent(d, 0.25)["w"]  # (I + F / 4)^-1 d
        tensor([1.6000, 0.2500])
    """

    kind: ClassVar[str] = "diagonal"

    def __init__(self, values: Mapping[str, Tensor], provenance: Provenance | None = None) -> None:
        for name, value in values.items():
            own = local(value)
            low, high = own.aminmax() if own.numel() else (own.new_zeros(()), own.new_zeros(()))
            if not (low >= 0 and high < float("inf")):
                raise ValueError(
                    f"values[{name!r}] ranges over [{low.item():g}, {high.item():g}]; expected finite and >= 0"
                )
        self.values: Parameters = dict(values)
        self.provenance = provenance or Provenance()

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return parameters.multiply(parameters.select(vector, self.values), self.values)

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        selected = parameters.select(vector, self.values)
        return parameters.inner(selected, parameters.multiply(selected, self.values))

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        steps, selected = steps_by_name(step, self.values), parameters.select(vector, self.values)
        denominators = torch._foreach_mul(list(self.values.values()), list(steps.values()))
        torch._foreach_add_(denominators, 1.0)
        return dict(zip(selected, torch._foreach_div(list(selected.values()), denominators), strict=True))

    @override
    def diagonal(self) -> Parameters:
        return dict(self.values)

    @override
    def trace(self) -> Tensor:
        own = torch.stack([local(value).sum(dtype=torch.float64) for value in self.values.values()]).sum()
        return summed(own, self.values.values())

    @override
    def largest_eigenvalue(self) -> float:
        return max((largest(value) for value in self.values.values() if value.numel()), default=0.0)

    @override
    def scaled(self, factor: float) -> Diagonal:
        check_factor(factor)
        return Diagonal(parameters.scale(self.values, factor), self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"values": self.values}
