"""One anchored quadratic, and sums of several in fewer terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.operator import Operator, Step
from cl_diffusion.linalg.operator_sum import total
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.shards import dealt_out, is_sharded
from cl_diffusion.linalg.storage import operator_from_state


@dataclass(frozen=True)
class Quadratic:
    """``1/2 d^T F d + b^T d + c`` with ``d = theta - anchor``.

    Every regulariser of this package is a sum of these, times a strength. ``theta`` may hold more parameters than the
    operator; the rest is free.

    Args:
        operator: ``F``.
        anchor: the parameters that are remembered, for (at least) the operator's names.
        constant: ``c``; it moves the value and never the gradient.
        slope: ``b``, what is left where quadratics of several anchors are summed about the newest; None is zero.

    Example:
        >>> import torch
        >>> from cl_diffusion.linalg import Diagonal
        >>> held = Quadratic(Diagonal({"w": torch.tensor([1.0, 4.0])}), anchor={"w": torch.zeros(2)})
        >>> float(held.value({"w": torch.tensor([2.0, 0.5])}))
        2.5
    """

    operator: Operator
    anchor: Parameters
    constant: float = 0.0
    slope: Parameters | None = None

    def value(self, theta: Mapping[str, Tensor]) -> Tensor:
        """The value at ``theta``, a float64 scalar."""
        displacement = self.displacement(theta)
        value = 0.5 * self.operator.quadratic(displacement) + self.constant
        return value if self.slope is None else value + parameters.inner(self.slope, displacement)

    def gradient(self, theta: Mapping[str, Tensor]) -> Parameters:
        """``F (theta - anchor) + b``, for the operator's names."""
        gradient = self.operator @ self.displacement(theta)
        return gradient if self.slope is None else parameters.axpy(1.0, self.slope, gradient)

    def prox(self, theta: Mapping[str, Tensor], step: Step) -> Parameters:
        """``argmin_x 1/2 (x - theta)^T D^{-1} (x - theta) + value(x)``.

        ``anchor + (I + D F)^{-1} (theta - anchor) - (D^{-1} + F)^{-1} b``. ``D`` is ``step`` times the identity, or
        diagonal with a step for each parameter; one of step 0 stays where it is.
        """
        moved = self.operator.resolvent(self.displacement(theta), step)
        if self.slope is not None:
            if not isinstance(self.operator, LowRank):
                raise NotImplementedError(
                    f"the proximal step of a {self.operator.kind} with a slope has no closed form"
                )
            moved = parameters.subtract(moved, self.operator.damped_inverse(self.slope, step))
        return parameters.axpy(1.0, moved, parameters.select(self.anchor, self.operator.names))

    def displacement(self, theta: Mapping[str, Tensor]) -> Parameters:
        """``theta - anchor``, for the operator's names."""
        names = self.operator.names
        return parameters.subtract(parameters.select(theta, names), parameters.select(self.anchor, names))

    def to(self, device: torch.device) -> Quadratic:
        """The same quadratic on another device; a sharded one stays where it is."""
        if is_sharded(self.anchor):
            return self
        moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, self.state())
        return self.from_state(moved)

    def dealt_out(self, theta: Mapping[str, Tensor]) -> Quadratic:
        """The same in shards like those of ``theta``."""
        like = {name: theta[name] for name in self.operator.names}
        if not is_sharded(like):
            return self
        device = next(iter(like.values())).device

        def dealt(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {name: dealt_out(tensor, like[name]) for name, tensor in part.items() if name in like}
            return part.to(device) if isinstance(part, Tensor) else part

        state = self.state()
        vectors: dict[str, Any] = {key: dealt(state[key]) for key in ("anchor", "slope") if key in state}
        return self.from_state({**state, **vectors, "tensors": {k: dealt(v) for k, v in state["tensors"].items()}})

    def read_by(self, theta: Mapping[str, Tensor]) -> Quadratic:
        """The same where ``theta`` is; a diagonal one also rounded to each parameter's precision, single at least.

        The rounding of an anchor moves it by half a unit in the last place of the parameters themselves.
        """
        operator = self.operator
        if not isinstance(operator, (Diagonal, Identity)):
            return self.to(theta[operator.names[0]].device)

        def rounded(vector: Mapping[str, Tensor]) -> Parameters:
            like = {name: theta[name] for name in vector}
            return {
                n: t.to(like[n].device, torch.promote_types(like[n].dtype, torch.float32)) for n, t in vector.items()
            }

        anchor = rounded(parameters.select(self.anchor, operator.names))
        if isinstance(operator, Identity):
            return replace(self, operator=Identity(anchor, operator.scale, operator.provenance), anchor=anchor)
        return replace(self, operator=Diagonal(rounded(operator.values), operator.provenance), anchor=anchor)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only: loads with ``torch.load(weights_only=True)``."""
        state = {**self.operator.state(), "anchor": dict(self.anchor), "constant": self.constant}
        return state if self.slope is None else {**state, "slope": dict(self.slope)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Quadratic:
        """The inverse of ``state``.

        Raises:
            ValueError: the kind of the operator is unknown.
        """
        slope = dict(state["slope"]) if "slope" in state else None
        return cls(operator_from_state(state), dict(state["anchor"]), float(state["constant"]), slope)


def merge(terms: Sequence[Quadratic], low_rank: bool = True) -> list[Quadratic]:
    """The same sum of quadratics in fewer terms: those whose operators have a sum in closed form become one.

    Diagonals (and identities) add up to a diagonal, low ranks to a low rank of stacked columns; the rest is kept. A
    merged term is the exact sum, expanded about the newest anchor. A parameter that only one term knows keeps that
    term's importance and anchor.

    Args:
        terms: oldest first.
        low_rank: whether low ranks are merged too; otherwise they stay side by side.

    Raises:
        ValueError: the terms are of different provenance, whatever their kind.
    """
    for old, new in pairwise(terms):
        old.operator.provenance.combined(new.operator.provenance)
    kinds: list[tuple[type[Operator], ...]] = [(Diagonal, Identity), *([(LowRank,)] if low_rank else [])]
    merged = []
    for kind in kinds:
        if alike := [term for term in terms if isinstance(term.operator, kind)]:
            merged.append(reduce(_summed, alike))
    closed = tuple(member for kind in kinds for member in kind)
    return [*merged, *(term for term in terms if not isinstance(term.operator, closed))]


def decayed(old: Quadratic | None, new: Quadratic, gamma: float) -> Quadratic:
    """``gamma (F_old + F_new)``, anchored at the newest parameters alone.

    After task k that is ``gamma F*_k`` with ``F*_k = gamma F*_{k-1} + F_k``: online EWC (Schwarz et al. 2018,
    1805.06370). With ``gamma = 1`` importances add up and only the newest anchor is kept (Huszar 2018).

    Raises:
        ValueError: the operators are of different provenance.
    """
    if old is None:
        return replace(new, operator=new.operator.scaled(gamma))
    operator = total([_doubled(old).operator, _doubled(new).operator])
    return Quadratic(operator.scaled(gamma), {**old.anchor, **new.anchor})


def truncated(term: Quadratic, rank: int) -> tuple[Quadratic, float]:
    """The term with the ``rank`` largest eigenvalues of its low-rank operator, and the trace of the others.

    The slope loses its part outside the range that is left: nothing would hold the parameters there.
    """
    if not isinstance(term.operator, LowRank):
        return term, 0.0
    operator, dropped = term.operator.truncated(rank)
    slope = term.slope if term.slope is None or dropped == 0 else operator.projected(term.slope)
    return replace(term, operator=operator, slope=slope), dropped


def _summed(old: Quadratic, new: Quadratic) -> Quadratic:
    """``old + new``, expanded about the anchor of ``new``; a diagonal sum in float64, with its square completed."""
    old, new = _doubled(old), _doubled(new)
    anchor = {**old.anchor, **new.anchor}
    slope = old.gradient(anchor)
    for name, tensor in (new.slope or {}).items():
        slope[name] = slope[name] + tensor if name in slope else tensor
    operator = total([old.operator, new.operator])
    whole = {name: slope.get(name, torch.zeros_like(anchor[name])) for name in operator.names}
    term = Quadratic(operator, anchor, float(old.value(anchor)) + new.constant, whole)
    return _completed(term) if isinstance(operator, Diagonal) else term


def _completed(term: Quadratic) -> Quadratic:
    """The same without a slope: anchored at ``anchor - b / F``. Where ``F`` is zero or denormal the anchor stays."""
    assert term.slope is not None
    shifts = {
        name: torch.where(values < torch.finfo(torch.float32).tiny, 0.0, term.slope[name] / values)
        for name, values in term.operator.diagonal().items()
    }
    constant = term.constant - 0.5 * float(parameters.inner(parameters.select(term.slope, shifts), shifts))
    anchor = {name: t - shifts[name] if name in shifts else t for name, t in term.anchor.items()}
    return Quadratic(term.operator, anchor, constant)


def _doubled(term: Quadratic) -> Quadratic:
    """A diagonal or identity as a diagonal in float64, anchor and all: a sum over many tasks keeps the small ones."""
    if not isinstance(term.operator, (Diagonal, Identity)):
        return term
    values = {name: value.double() for name, value in term.operator.diagonal().items()}
    anchor = {name: tensor.double() for name, tensor in term.anchor.items()}
    return replace(term, operator=Diagonal(values, term.operator.provenance), anchor=anchor)
