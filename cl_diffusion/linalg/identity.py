"""The identity on parameters."""

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


class Identity(Operator):
    """``F = scale * I``: every direction is equally important (L2-SP, Li, Grandvalet & Davoine 2018, 1802.01483).

    Args:
        like: parameters whose names, shapes and types the operator takes; their values are not kept.
        scale: the factor, >= 0.
        provenance: what the operator is an estimate of.
    """

    kind: ClassVar[str] = "identity"

    def __init__(self, like: Mapping[str, Tensor], scale: float = 1.0, provenance: Provenance | None = None) -> None:
        check_factor(scale)
        self.ones = {name: tensor.detach().new_ones(()).expand(tensor.shape) for name, tensor in like.items()}
        self.scale = float(scale)
        self.provenance = provenance or Provenance()

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(self.ones)

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return parameters.scale(parameters.select(vector, self.ones), self.scale)

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        selected = parameters.select(vector, self.ones)
        return self.scale * parameters.inner(selected, selected)

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        steps, selected = steps_by_name(step, self.ones), parameters.select(vector, self.ones)
        return {name: tensor / (1.0 + steps[name] * self.scale) for name, tensor in selected.items()}

    @override
    def diagonal(self) -> Parameters:
        return parameters.scale(self.ones, self.scale)

    @override
    def trace(self) -> Tensor:
        return torch.tensor(self.scale * sum(one.numel() for one in self.ones.values()), dtype=torch.float64)

    @override
    def largest_eigenvalue(self) -> float:
        return self.scale if self.ones else 0.0

    @override
    def scaled(self, factor: float) -> Identity:
        check_factor(factor)
        return Identity(self.ones, factor * self.scale, self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"like": self.ones, "scale": self.scale}
