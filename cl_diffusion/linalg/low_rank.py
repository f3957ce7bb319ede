"""A matrix of low rank on parameters, in its eigenbasis."""

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
from cl_diffusion.linalg.shards import dealt_as, local, summed


class LowRank(Operator):
    """``F = sum_j s_j v_j v_j^T``, kept as ``U diag(s) U^T`` with orthonormal columns; rank one is one column.

    Args:
        vectors: the ``v_j`` stacked on a leading axis: shapes ``(k, *parameter shape)``. They need be neither
            orthogonal nor of unit length: the operator is brought to its eigenbasis, where the resolvent is closed
            (stacked columns of several tasks are not orthonormal, and treating them so is 30% wrong). Columns are kept
            in single precision at least: in half, orthonormal ones are not told from others.
        values: the ``s_j``, shape ``(k,)``, finite and >= 0.
        provenance: what the operator is an estimate of.

    Raises:
        ValueError: a value is negative or not finite, or the leading axes are not all ``k``.

    Example:
        >>> import torch
        >>> g = {"w": torch.tensor([[3.0, 4.0]])}
        >>> operator = LowRank(g, torch.tensor([2.0]))  # 2 g g^T
        >>> (operator @ {"w": torch.tensor([1.0, 0.0])})["w"].round()
        tensor([18., 24.])
        >>> operator.rank, round(float(operator.trace()), 4)
        (1, 50.0)
    """

    kind: ClassVar[str] = "low_rank"

    def __init__(self, vectors: Mapping[str, Tensor], values: Tensor, provenance: Provenance | None = None) -> None:
        if values.ndim != 1 or not bool(((values >= 0) & values.isfinite()).all()):
            raise ValueError(f"values={values!r}; expected shape (k,), finite and >= 0")
        for name, columns in vectors.items():
            if columns.shape[:1] != values.shape:
                raise ValueError(
                    f"vectors[{name!r}] has shape {tuple(columns.shape)}; expected a leading axis of k={len(values)}"
                )
        self.vectors, self.values = _eigenbasis(_widened(vectors), values.double())
        self.provenance = provenance or Provenance()

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(self.vectors)

    @property
    def rank(self) -> int:
        """The number of columns ``k``."""
        return len(self.values)

    @override
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        return self._expand(self.values * self._coordinates(vector))

    @override
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        return (self.values * self._coordinates(vector).square()).sum()

    @override
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        """``v - D U (I + S U^T D U)^{-1} S U^T v`` (Woodbury)."""
        steps = steps_by_name(step, self.vectors)
        removed = self._solved(self.values * self._coordinates(vector), steps)
        return parameters.subtract(parameters.select(vector, self.vectors), removed)

    def damped_inverse(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        """``(D^{-1} + F)^{-1} v`` for ``v`` in the range of ``F``, without cancellation however large ``D`` is.

        ``D`` is as in ``resolvent``. Directions whose eigenvalue is rounding count as out of the range.
        """
        steps = steps_by_name(step, self.vectors)
        rounding = torch.finfo(next(iter(self.vectors.values())).dtype).eps * self.largest_eigenvalue()
        return self._solved(torch.where(self.values > rounding, self._coordinates(vector), 0.0), steps)

    @override
    def diagonal(self) -> Parameters:
        return {
            name: _mixed(self.values.to(columns.dtype), columns, columns_squared=True)
            for name, columns in self.vectors.items()
        }

    @override
    def trace(self) -> Tensor:
        return self.values.sum()

    @override
    def largest_eigenvalue(self) -> float:
        return float(self.values.max()) if self.rank else 0.0

    @override
    def scaled(self, factor: float) -> LowRank:
        check_factor(factor)
        return LowRank(self.vectors, factor * self.values, self.provenance)

    @override
    def tensors(self) -> dict[str, Any]:
        return {"vectors": self.vectors, "values": self.values}

    def truncated(self, rank: int) -> tuple[LowRank, float]:
        """The operator of the largest ``rank`` eigenvalues, and the trace of what is dropped."""
        kept = self.values.argsort(descending=True)[:rank]
        if len(kept) == self.rank:
            return self, 0.0
        vectors = {name: dealt_as(local(columns)[kept], columns) for name, columns in self.vectors.items()}
        operator = LowRank(vectors, self.values[kept], self.provenance)
        return operator, float(self.trace() - operator.trace())

    def projected(self, vector: Mapping[str, Tensor]) -> Parameters:
        """``U U^T v``: the part of the vector in the operator's range."""
        return self._expand((self.values > 0) * self._coordinates(vector))

    def _solved(self, coordinates: Tensor, steps: Mapping[str, float]) -> Parameters:
        """``D U (I + S U^T D U)^{-1} c``."""
        if len(set(steps.values())) == 1:
            mixed = coordinates / (1.0 + next(iter(steps.values())) * self.values)
        else:
            gram = _gram(self.vectors, steps)
            mixed = torch.linalg.solve(torch.eye(self.rank).to(gram) + self.values[:, None] * gram, coordinates)
        return {name: tensor.mul_(steps[name]) for name, tensor in self._expand(mixed).items()}

    def _coordinates(self, vector: Mapping[str, Tensor]) -> Tensor:
        """``U^T v``: float64 ``(k,)``."""
        selected = parameters.select(vector, self.vectors)
        flat = {name: parameters.flat_rows(local(columns)) for name, columns in self.vectors.items()}
        parts = [rows @ local(selected[name]).reshape(-1).to(rows.dtype) for name, rows in flat.items()]
        return summed(torch.stack(parts).sum(0, dtype=torch.float64), self.vectors.values())

    def _expand(self, coordinates: Tensor) -> Parameters:
        """``U c``."""
        return {name: _mixed(coordinates.to(columns.dtype), columns) for name, columns in self.vectors.items()}


def _widened(vectors: Mapping[str, Tensor]) -> Parameters:
    return {name: columns.to(torch.promote_types(columns.dtype, torch.float32)) for name, columns in vectors.items()}


def _eigenbasis(vectors: Parameters, values: Tensor) -> tuple[Parameters, Tensor]:
    """Orthonormal columns ``U`` and eigenvalues of ``V diag(s) V^T``, from the k x k Gram matrix ``V^T V = W D W^T``.

    ``V = Q R`` with ``Q = V W D^{-1/2}`` and ``R = D^{1/2} W^T``; the eigenvectors of ``R diag(s) R^T`` rotate ``Q``.
    Columns that are already orthonormal are kept bit for bit, so that loading changes nothing; where nearly dependent
    columns leave ``Q`` short of that, it is brought there once more.
    """
    for _ in range(4):
        if _orthonormal(vectors):
            break
        vectors, values = _decomposed(vectors, values)
    return vectors, values


def _orthonormal(vectors: Parameters) -> bool:
    gram = _gram(vectors)
    dtype = next(iter(vectors.values())).dtype
    return bool(((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs() < _tolerance(dtype)).all())


def _gram(vectors: Parameters, steps: Mapping[str, float] | None = None) -> Tensor:
    """``V^T V``, or ``V^T D V`` with a step a parameter: float64 ``(k, k)``."""
    flat = {name: parameters.flat_rows(local(columns)).double() for name, columns in vectors.items()}
    weights = dict.fromkeys(flat, 1.0) if steps is None else steps
    own = torch.stack([weights[name] * (columns @ columns.T) for name, columns in flat.items()]).sum(0)
    return summed(own, vectors.values())


def _decomposed(vectors: Parameters, values: Tensor) -> tuple[Parameters, Tensor]:
    """One pass of ``_eigenbasis``."""
    gram = _gram(vectors)
    dtype = next(iter(vectors.values())).dtype
    lengths, directions = torch.linalg.eigh(gram)
    kept = lengths > lengths.amax() * len(values) * torch.finfo(torch.float64).eps
    lengths, directions = lengths[kept], directions[:, kept]
    triangular = lengths.sqrt()[:, None] * directions.T
    eigenvalues, rotation = torch.linalg.eigh(triangular * values @ triangular.T)
    mixing = (directions / lengths.sqrt()) @ rotation
    order = eigenvalues.argsort(descending=True)
    mixing = mixing[:, order].T
    return (
        {name: _mixed(mixing, columns.double()).to(dtype) for name, columns in vectors.items()},
        eigenvalues[order].clamp(min=0.0),
    )


def _mixed(coefficients: Tensor, columns: Tensor, columns_squared: bool = False) -> Tensor:
    """Sums of the columns, or of their squares, with coefficients ``(..., k)``."""
    own = local(columns).square() if columns_squared else local(columns)
    return dealt_as(torch.tensordot(coefficients, own, dims=1), columns)


def _tolerance(dtype: torch.dtype) -> float:
    return 32 * torch.finfo(dtype).eps
