"""An operator that has let go of some entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.operator import Operator, Step, check_factor, steps_by_name
from cl_diffusion.linalg.operator_sum import OperatorSum
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance


class Masked(Operator):
    """``M F M`` with ``M`` diagonal, 0 where entries are let go and 1 elsewhere; what ``released`` falls back to.

    Args:
        parts: ``F`` alone.
        keep: by parameter, bool, False where it is let go; a parameter that is not named is kept whole.
        provenance: what the operator is an estimate of; that of ``F`` by default.
    """

    kind: ClassVar[str] = "masked"

    def __init__(
        self, parts: Sequence[Operator], keep: Mapping[str, Tensor], provenance: Provenance | None = None
    ) -> None:
        (self.operator,) = parts
        self.keep = {name: mask for name, mask in keep.items() if name in self.operator.names}
        self.provenance = provenance or self.operator.provenance

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return self.operator.names

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return masked(self.operator @ masked(vector, self.keep), self.keep)

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        return self.operator.quadratic(masked(vector, self.keep))

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        steps_by_name(step, self.names)
        raise NotImplementedError(
            f"(I + step F)^-1 of a {self.operator.kind} that has let go of entries has no closed form; use the "
            "penalty's gradient"
        )

    @override
    def diagonal(self) -> Parameters:
        return masked(self.operator.diagonal(), self.keep)

    @override
    def trace(self) -> Tensor:
        return torch.stack([values.sum(dtype=torch.float64) for values in self.diagonal().values()]).sum()

    @override
    def largest_eigenvalue(self) -> float:
        return max(float(values.max()) for values in self.diagonal().values())  # a lower bound

    @override
    def scaled(self, factor: float) -> Masked:
        check_factor(factor)
        return Masked([self.operator.scaled(factor)], self.keep, self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"parts": [self.operator.state()], "keep": self.keep}


def released(operator: Operator, keep: Mapping[str, Tensor]) -> Operator:
    """``M F M``, in the simplest form that holds it: diagonals and low ranks stay what they are."""
    if not any(name in keep for name in operator.names):
        return operator
    if isinstance(operator, (Diagonal, Identity)):
        return Diagonal(masked(operator.diagonal(), keep), operator.provenance)
    if isinstance(operator, LowRank):
        return LowRank(masked(operator.vectors, keep), operator.values, operator.provenance)
    if isinstance(operator, OperatorSum):
        return OperatorSum([released(part, keep) for part in operator.parts], operator.provenance)
    if isinstance(operator, Masked):
        both = {name: mask & operator.keep[name] if name in operator.keep else mask for name, mask in keep.items()}
        return Masked([operator.operator], {**operator.keep, **both}, operator.provenance)
    return Masked([operator], keep)


def masked(vector: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> Parameters:
    """The vector with zeros in what is not kept; leading axes, such as those of columns, are independent."""
    return {name: value * keep[name].to(value.device) if name in keep else value for name, value in vector.items()}
