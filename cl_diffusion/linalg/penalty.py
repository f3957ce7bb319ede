"""A penalty that takes in one anchored quadratic a task, and how it keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cl_diffusion.arguments import is_whole
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.masked import masked, released
from cl_diffusion.linalg.operator_sum import OperatorSum, total
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.quadratic import Quadratic, decayed, merge, truncated
from cl_diffusion.linalg.shards import largest, local, wholes
from cl_diffusion.linalg.sweep import add_gradients_

Memory = Literal["merged", "separate", "online"]


class Penalty:
    """``sum_k 1/2 (theta - theta_k)^T F_k (theta - theta_k)``.

    *Merged*: the exact sum in one term where it has a closed form: diagonals (in float64) and low ranks (by stacked
    columns); others side by side. *Separate*: low ranks stay side by side too. *Online*: one term ``gamma (F_old +
    F_k)`` at the newest anchor (Schwarz et al. 2018, 1805.06370). Diagonals are always merged: the same gradient, at
    constant cost.

    Terms are kept on the CPU, sharded ones where they are; ``working`` gives them as a step reads them.
    ``names`` are the parameters that are held.

    Args:
        memory: ``"merged"``, ``"separate"`` or ``"online"``.
        gamma: of the online memory, in [0, 1]; None is 1.
        max_rank: low-rank terms keep so many eigenvalues; None keeps all.

    Raises:
        ValueError: an argument is out of its range, or two of them do not go together.
    """

    def __init__(self, memory: Memory = "merged", gamma: float | None = None, max_rank: int | None = None) -> None:
        if memory not in get_args(Memory):
            raise ValueError(f"memory={memory!r}; expected one of {', '.join(map(repr, get_args(Memory)))}")
        if gamma is not None and memory != "online":
            raise ValueError(f"gamma={gamma!r} is of memory='online' alone, and memory={memory!r}; leave gamma out")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma!r}; expected a number in [0, 1]")
        if max_rank is not None and not is_whole(max_rank, 1):
            raise ValueError(f"max_rank={max_rank!r}; expected a positive number of eigenvalues, or None")
        self.memory = memory
        self.gamma = 1.0 if gamma is None else gamma
        self.max_rank = max_rank
        self.terms = []

    @property
    def terms(self) -> list[Quadratic]:
        """What is kept, exactly."""
        return self._terms

    @terms.setter
    def terms(self, terms: Sequence[Quadratic]) -> None:
        self._terms = list(terms)
        self.names = frozenset(name for term in terms for name in term.operator.names)
        self._read: tuple[Any, list[Quadratic]] | None = None
        self._bounds: list[tuple[frozenset[str], float]] | None = None

    @property
    def closed(self) -> bool:
        """Whether all anchors can be solved for jointly: there is one term, and its resolvent is closed."""
        return len(self._terms) == 1 and not isinstance(self._terms[0].operator, OperatorSum)

    def remember(self, term: Quadratic) -> float:
        """Take in one more quadratic; returns the trace that ``max_rank`` has cut off low-rank terms.

        Raises:
            ValueError: it is of another provenance than what is kept.
        """
        new = term.to(torch.device("cpu"))
        if self.memory == "online":
            terms = [decayed(self._terms[0] if self._terms else None, new, self.gamma)]
        else:
            terms = merge([*self._terms, new], low_rank=self.memory == "merged")
        if self.max_rank is None:
            self.terms = terms
            return 0.0
        cut = [truncated(each, self.max_rank) for each in terms]
        self.terms = [kept for kept, _ in cut]
        return sum(trace for _, trace in cut)

    def deal_out(self, theta: Mapping[str, Tensor]) -> None:
        """Keep what came whole from a checkpoint in shards like those of ``theta``."""
        self.terms = [term.dealt_out(theta) for term in self._terms]

    def release(self, keep: Mapping[str, Tensor]) -> None:
        """Hold no longer the entries that are False in ``keep``: ``F_k`` becomes ``M F_k M``, by parameter.

        Exact but for merged low ranks: what other entries' importance owed to the displacement of these between two
        anchors stays in their slope.
        """
        if not self.names & keep.keys():
            return
        self.terms = [
            replace(
                term,
                operator=released(term.operator, keep),
                slope=None if term.slope is None else masked(term.slope, keep),
            )
            for term in self._terms
        ]

    def working(self, theta: Mapping[str, Tensor]) -> list[Quadratic]:
        """The terms as a step of ``theta`` reads them: on its device, diagonals in its precision (single at least)."""
        found = [(theta[name].device, theta[name].dtype) for name in self.names]
        if self._read is None or self._read[0] != found:
            self._read = found, [term.read_by(theta) for term in self._terms]
        return self._read[1]

    def add_gradient_(self, gradients: Parameters, theta: Mapping[str, Tensor], factor: float) -> None:
        """``gradients += factor * gradient(theta)`` in place, for the names that ``gradients`` holds."""
        if self._terms:
            add_gradients_(self.working(theta), gradients, theta, factor)

    @torch.no_grad()
    def solve_(self, theta: Mapping[str, Tensor], steps: Mapping[str, float]) -> None:
        """``theta <- argmin_x 1/2 (x - theta)^T D^{-1} (x - theta) + value(x)`` in place, ``D`` of a step a parameter.

        For a penalty that is ``closed``; names without a step stay.
        """
        if not self._terms:
            return
        (term,) = self.working(theta)
        known = [name for name in term.operator.names if name in steps]
        with torch.autocast(theta[term.operator.names[0]].device.type, enabled=False):
            solved = term.prox(theta, steps)
        torch._foreach_copy_([local(theta[name]) for name in known], [local(solved[name]) for name in known])

    def curvature(self, names: frozenset[str]) -> float:
        """A lower bound of the largest eigenvalue of ``sum_k F_k``, restricted to some parameters.

        A diagonal entry is one, whatever else takes part; so is the largest eigenvalue of a term, or of all low ranks
        together, all of whose parameters take part.
        """
        if self._bounds is None:
            sums: dict[str, Tensor] = {}
            for term in self._terms:
                for name, values in term.operator.diagonal().items():
                    sums[name] = sums[name] + values if name in sums else values
            entries = [(frozenset([name]), largest(values)) for name, values in sums.items() if values.numel()]
            low_rank = [t.operator for t in self._terms if isinstance(t.operator, LowRank)]
            whole = [t.operator for t in self._terms if not isinstance(t.operator, LowRank)]
            whole += [total(low_rank)] if low_rank else []
            self._bounds = entries + [(frozenset(each.names), each.largest_eigenvalue()) for each in whole]
        return max((bound for needed, bound in self._bounds if needed <= names), default=0.0)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint; whole tensors, for which every process has to ask."""
        terms = [wholes(term.state()) for term in self._terms]
        return {"memory": self.memory, "gamma": self.gamma, "terms": terms}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``.

        Raises:
            ValueError: the state was kept by another kind of memory.
        """
        for name, mine in {"memory": self.memory, "gamma": self.gamma}.items():
            if state.get(name, mine) != mine:
                raise ValueError(
                    f"{name}={mine!r}, but the checkpoint was made with {name}={state[name]!r}; use that, or start "
                    "without the checkpoint"
                )
        self.terms = [Quadratic.from_state(each) for each in state["terms"]]
