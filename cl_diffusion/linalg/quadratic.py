"""One anchored quadratic, and the merging of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.operator import Operator
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.storage import operator_from_state


@dataclass(frozen=True)
class Quadratic:
    """``1/2 (theta - anchor)^T F (theta - anchor) + constant``.

    Every regulariser of this package is a sum of these, times a strength. ``theta`` may hold more parameters than the
    operator; the rest is free.

    Args:
        operator: ``F``.
        anchor: the parameters that are remembered, for (at least) the operator's names.
        constant: what merging left over; it moves the value and never the gradient.
    """

    operator: Operator
    anchor: Parameters
    constant: float = 0.0

    def value(self, theta: Mapping[str, Tensor]) -> Tensor:
        """The value at ``theta``, a float64 scalar."""
        return 0.5 * self.operator.quadratic(self.displacement(theta)) + self.constant

    def gradient(self, theta: Mapping[str, Tensor]) -> Parameters:
        """``F (theta - anchor)``, for the operator's names."""
        return self.operator @ self.displacement(theta)

    def prox(self, theta: Mapping[str, Tensor], step: float) -> Parameters:
        """``argmin_x |x - theta|^2 / (2 step) + value(x) = anchor + (I + step F)^{-1} (theta - anchor)``."""
        moved = self.operator.resolvent(self.displacement(theta), step)
        return parameters.axpy(1.0, moved, parameters.select(self.anchor, self.operator.names))

    def displacement(self, theta: Mapping[str, Tensor]) -> Parameters:
        """``theta - anchor``, for the operator's names."""
        names = self.operator.names
        return parameters.subtract(parameters.select(theta, names), parameters.select(self.anchor, names))

    def to(self, device: torch.device) -> Quadratic:
        """The same quadratic on another device; itself where it is there already."""
        if all(tensor.device == device for tensor in self.anchor.values()):
            return self
        moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, self.state())
        return self.from_state(moved)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only: loads with ``torch.load(weights_only=True)``."""
        return {**self.operator.state(), "anchor": dict(self.anchor), "constant": self.constant}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Quadratic:
        """The inverse of ``state``.

        Raises:
            ValueError: the kind of the operator is unknown.
        """
        return cls(operator_from_state(state), dict(state["anchor"]), float(state["constant"]))


def merge(terms: Sequence[Quadratic]) -> list[Quadratic]:
    """The same sum of quadratics in fewer terms: all diagonal (or identity) terms become one, the rest is kept.

    ``F = F_1 + F_2`` with anchor ``(F_1 a_1 + F_2 a_2) / F`` has the same gradient everywhere; the value is kept by the
    constant ``1/2 (a_1 - a_2)^T F_1 F_2 / F (a_1 - a_2)``. Where ``F`` is zero or denormal the newest anchor stands. A
    parameter that only one term knows keeps that term's importance and anchor.

    Raises:
        ValueError: the terms are of different provenance, whatever their kind.
    """
    for old, new in pairwise(terms):
        old.operator.provenance.combined(new.operator.provenance)
    elementwise = [term for term in terms if isinstance(term.operator, (Diagonal, Identity))]
    kept = [term for term in terms if not isinstance(term.operator, (Diagonal, Identity))]
    if not elementwise:
        return kept
    merged = elementwise[0]
    for term in elementwise[1:]:
        merged = _merge_pair(merged, term)
    return [merged, *kept]


def _merge_pair(old: Quadratic, new: Quadratic) -> Quadratic:
    provenance = old.operator.provenance.combined(new.operator.provenance)
    old_values, new_values = old.operator.diagonal(), new.operator.diagonal()
    total: Parameters = {**old_values, **new_values}
    anchor = {name: term.anchor[name] for term in (old, new) for name in term.operator.names}
    constant = old.constant + new.constant
    for name in old_values.keys() & new_values.keys():
        f_new = new_values[name]
        f = old_values[name] + f_new
        shift = new.anchor[name] - old.anchor[name]
        share = torch.where(f < torch.finfo(f.dtype).tiny, torch.ones_like(f), f_new / f)
        total[name] = f
        anchor[name] = torch.where(share == 1, new.anchor[name], old.anchor[name] + share * shift)
        constant += 0.5 * float((old_values[name] * share * shift.square()).sum(dtype=torch.float64))
    return Quadratic(Diagonal(total, provenance), anchor, constant)
