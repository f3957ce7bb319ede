"""Operators on disjoint parameters, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.linalg.operator import Operator, Step, check_factor
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance


class BlockDiagonal(Operator):
    """``F = F_1 (+) F_2 (+) ...``: each part acts on parameters of its own, and nothing couples them.

    Args:
        parts: operators with disjoint names, at least one.
        provenance: what the operator is an estimate of.

    Raises:
        ValueError: there is no part, or two parts act on one parameter.
    """

    kind: ClassVar[str] = "block_diagonal"

    def __init__(self, parts: Sequence[Operator], provenance: Provenance | None = None) -> None:
        names = [name for part in parts for name in part.names]
        if not parts or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"parts={[p.kind for p in parts]} share the parameters {twice}; expected at least one part, on "
                "disjoint parameters"
            )
        self.parts = tuple(parts)
        self.provenance = provenance or Provenance()

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.names)

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return _united(part @ vector for part in self.parts)

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([part.quadratic(vector) for part in self.parts]).sum()

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        return _united(part.resolvent(vector, step) for part in self.parts)

    @override
    def diagonal(self) -> Parameters:
        return _united(part.diagonal() for part in self.parts)

    @override
    def trace(self) -> Tensor:
        return torch.stack([part.trace() for part in self.parts]).sum()

    @override
    def largest_eigenvalue(self) -> float:
        return max(part.largest_eigenvalue() for part in self.parts)

    @override
    def scaled(self, factor: float) -> BlockDiagonal:
        check_factor(factor)
        return BlockDiagonal([part.scaled(factor) for part in self.parts], self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"parts": [part.state() for part in self.parts]}


def _united(blocks: Any) -> Parameters:
    return {name: tensor for block in blocks for name, tensor in block.items()}
