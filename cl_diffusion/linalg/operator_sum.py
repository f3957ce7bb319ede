"""The sum of several operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.operator import Operator, Step, check_factor, steps_by_name
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance
from cl_diffusion.linalg.shards import dealt_as, local


class OperatorSum(Operator):
    """``F = F_1 + F_2 + ...``, kept as its terms; what ``total`` returns where the sum has no form of its own.

    A parameter that only some terms know takes part in those. The resolvent of such a sum is not closed and is refused.

    Args:
        parts: the terms, at least one.
        provenance: what the operator is an estimate of.

    Raises:
        ValueError: there is no part.
    """

    kind: ClassVar[str] = "sum"

    def __init__(self, parts: Sequence[Operator], provenance: Provenance | None = None) -> None:
        if not parts:
            raise ValueError("parts=[]; expected at least one operator")
        self.parts = tuple(parts)
        self.provenance = provenance or Provenance()

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.names))

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return reduce(_added, (part @ vector for part in self.parts))

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([part.quadratic(vector) for part in self.parts]).sum()

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        steps_by_name(step, self.names)
        kinds = ", ".join(part.kind for part in self.parts)
        raise NotImplementedError(
            f"(I + step F)^-1 of a sum of {len(self.parts)} operators ({kinds}) has no closed form; use the penalty's "
            "gradient, or an estimator whose sums stay closed (diagonal, low rank)"
        )

    @override
    def diagonal(self) -> Parameters:
        return reduce(_added, (part.diagonal() for part in self.parts))

    @override
    def trace(self) -> Tensor:
        return torch.stack([part.trace() for part in self.parts]).sum()

    @override
    def largest_eigenvalue(self) -> float:
        return max(part.largest_eigenvalue() for part in self.parts)

    @override
    def scaled(self, factor: float) -> OperatorSum:
        check_factor(factor)
        return OperatorSum([part.scaled(factor) for part in self.parts], self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"parts": [part.state() for part in self.parts]}


def total(operators: Sequence[Operator], provenance: Provenance | None = None) -> Operator:
    """The sum, in the simplest form that holds it.

    Diagonals stay diagonal, low ranks stay low-rank; everything else is an ``OperatorSum``.

    Args:
        operators: at least one, in any order.
        provenance: of the sum. None combines the operators' own.

    Raises:
        ValueError: there is no operator, or (without ``provenance``) their provenance differs.
    """
    if not operators:
        raise ValueError("operators=[]; expected at least one operator")
    if provenance is None:
        provenance = reduce(lambda a, b: a.combined(b), (operator.provenance for operator in operators))
    low_rank = [operator for operator in operators if isinstance(operator, LowRank)]
    if all(isinstance(operator, (Diagonal, Identity)) for operator in operators):
        return Diagonal(reduce(_added, (operator.diagonal() for operator in operators)), provenance)
    if len(low_rank) == len(operators):
        return LowRank(_stacked(low_rank), torch.cat([operator.values for operator in low_rank]), provenance)
    return OperatorSum(operators, provenance)


def _stacked(operators: Sequence[LowRank]) -> Parameters:
    """All columns, with zeros in the parameters that an operator does not know."""
    like = {name: columns for operator in operators for name, columns in operator.vectors.items()}

    def stacked(name: str) -> Tensor:
        zero = local(like[name])
        parts = [
            local(each.vectors[name]) if name in each.vectors else zero.new_zeros((each.rank, *zero.shape[1:]))
            for each in operators
        ]
        return dealt_as(torch.cat(parts), like[name])

    return {name: stacked(name) for name in like}


def _added(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Parameters:
    """``a + b``; a name that only one has keeps its value."""
    shared = [name for name in a if name in b]
    both = parameters.axpy(1.0, parameters.select(a, shared), parameters.select(b, shared)) if shared else {}
    return {**a, **b, **both}
