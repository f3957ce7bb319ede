"""The gradient of a sum of anchored quadratics, in one sweep over the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cl_diffusion.linalg import parameters
from cl_diffusion.linalg.diagonal import Diagonal
from cl_diffusion.linalg.identity import Identity
from cl_diffusion.linalg.low_rank import LowRank
from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.quadratic import Quadratic
from cl_diffusion.linalg.shards import local, summed

PIECE = 2**18
"""Entries of a piece on a CPU: intermediate results of one stay in cache. An accelerator takes everything at once."""

Piece = list[tuple[str, slice | None]]
"""Parameters by name, each a flat slice or whole."""


@torch.no_grad()
def add_gradients_(
    terms: Sequence[Quadratic], gradients: Parameters, theta: Mapping[str, Tensor], factor: float
) -> None:
    """``gradients += factor * sum_k (F_k (theta - anchor_k) + b_k)`` in place, for the names that ``gradients`` holds.

    Diagonal, identity and low-rank terms are added piece by piece, so that each tensor is read from memory once (a
    low-rank term's columns twice: all of its coordinates must be known first); other operators by their products.
    """
    if not terms:
        return
    device = theta[terms[0].operator.names[0]].device
    with torch.autocast(device.type, enabled=False):  # a manual optimisation steps inside the forward's autocast
        _Sweep(terms, gradients, theta, factor).run()
        for term in terms:
            if not isinstance(term.operator, (Diagonal, Identity, LowRank)):
                product = {name: g for name, g in term.gradient(theta).items() if name in gradients}
                parameters.add_(parameters.select(gradients, product), product, factor)


class _Sweep:
    def __init__(
        self, terms: Sequence[Quadratic], gradients: Parameters, theta: Mapping[str, Tensor], factor: float
    ) -> None:
        self.gradients = {name: local(tensor) for name, tensor in gradients.items()}
        self.theta = {name: local(tensor) for name, tensor in theta.items()}
        self.shared = [theta[terms[0].operator.names[0]]]  # by processes, where it is sharded
        self.factor = factor
        self.elementwise = [term for term in terms if isinstance(term.operator, (Diagonal, Identity))]
        self.low_rank = [(term, term.operator) for term in terms if isinstance(term.operator, LowRank)]
        self.known = {id(term): frozenset(term.operator.names) for term in terms}
        self.names = dict.fromkeys(
            name for term in [*self.elementwise, *(term for term, _ in self.low_rank)] for name in term.operator.names
        )
        self.scratch: Tensor | None = None

    def run(self) -> None:
        coordinates: list[list[Tensor]] = [[] for _ in self.low_rank]
        plan = list(self._pieces())
        for piece in plan:
            for term in self.elementwise:
                self._add_elementwise(term, self._wanted(piece, term))
            for (term, operator), parts in zip(self.low_rank, coordinates, strict=True):
                parts.extend(self._coordinates(term, operator, self._part(piece, term)))
        weights = [
            self.factor * operator.values * summed(torch.stack(parts).sum(0, dtype=torch.float64), self.shared)
            for (_, operator), parts in zip(self.low_rank, coordinates, strict=True)
        ]
        for piece in plan if self.low_rank else ():
            for (term, operator), weight in zip(self.low_rank, weights, strict=True):
                self._add_columns(term, operator, weight, self._wanted(piece, term))

    def _pieces(self) -> Iterator[Piece]:
        """Large tensors in flat slices, small ones together."""
        together: Piece = []
        size = 0
        for name in self.names:
            tensor = self.theta[name]
            on_cpu, entries = tensor.device.type == "cpu", tensor.numel()
            flat = tensor.is_contiguous() and self.gradients.get(name, tensor).is_contiguous()
            if on_cpu and flat and entries > PIECE:
                for start in range(0, entries, PIECE):
                    yield [(name, slice(start, start + PIECE))]
                continue
            together.append((name, None))
            size += entries
            if on_cpu and size >= PIECE:
                yield together
                together, size = [], 0
        if together:
            yield together

    def _part(self, piece: Piece, term: Quadratic) -> Piece:
        known = self.known[id(term)]
        return [(name, part) for name, part in piece if name in known]

    def _wanted(self, piece: Piece, term: Quadratic) -> Piece:
        return [(name, part) for name, part in self._part(piece, term) if name in self.gradients]

    def _displacement(self, term: Quadratic, piece: Piece) -> list[Tensor]:
        weights, anchor = _cut(self.theta, piece), _cut(term.anchor, piece)
        if piece[0][1] is None or weights[0].dtype != anchor[0].dtype:
            return list(torch._foreach_sub(weights, anchor))
        if self.scratch is None or self.scratch.dtype != weights[0].dtype:
            self.scratch = weights[0].new_empty(PIECE)
        return [torch.sub(weights[0], anchor[0], out=self.scratch[: weights[0].numel()])]

    def _add_elementwise(self, term: Quadratic, piece: Piece) -> None:
        if not piece:
            return
        out, moved = _cut(self.gradients, piece), self._displacement(term, piece)
        if isinstance(term.operator, Diagonal):
            torch._foreach_addcmul_(out, _cut(term.operator.values, piece), moved, value=self.factor)
        elif isinstance(term.operator, Identity):
            torch._foreach_add_(out, moved, alpha=self.factor * term.operator.scale)
        self._add_slope(term, out, piece)

    def _coordinates(self, term: Quadratic, operator: LowRank, piece: Piece) -> list[Tensor]:
        """``U^T (theta - anchor)`` of each part of the piece."""
        if not piece:
            return []
        moved, columns = self._displacement(term, piece), _cut_columns(operator, piece)
        return [torch.mv(u, d.reshape(-1).to(u.dtype)) for u, d in zip(columns, moved, strict=True)]

    def _add_columns(self, term: Quadratic, operator: LowRank, weights: Tensor, piece: Piece) -> None:
        """``U w``, and the slope."""
        out = _cut(self.gradients, piece)
        for g, u in zip(out, _cut_columns(operator, piece), strict=True):
            if g.is_contiguous() and g.dtype == u.dtype:
                g.view(-1).addmv_(u.T, weights.to(u.dtype))
            else:
                g.add_((weights.to(u.dtype) @ u).view(g.shape))
        self._add_slope(term, out, piece)

    def _add_slope(self, term: Quadratic, out: list[Tensor], piece: Piece) -> None:
        if term.slope is not None and piece:
            torch._foreach_add_(out, _cut(term.slope, piece), alpha=self.factor)


def _cut(vector: Mapping[str, Tensor], piece: Piece) -> list[Tensor]:
    own = [(local(vector[name]), part) for name, part in piece]
    return [tensor if part is None else tensor.reshape(-1)[part] for tensor, part in own]


def _cut_columns(operator: LowRank, piece: Piece) -> list[Tensor]:
    """``(k, entries)`` of each part."""
    flat = [(parameters.flat_rows(local(operator.vectors[name])), part) for name, part in piece]
    return [columns if part is None else columns[:, part] for columns, part in flat]
