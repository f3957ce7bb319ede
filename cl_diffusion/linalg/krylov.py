"""The space that a symmetric matrix spans from one vector, grown product by product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]


class Krylov:
    """An orthonormal basis ``Q`` of a Krylov space and ``H = Q^T A Q``, grown one product at a time.

    Each new vector is orthogonalised twice against all before it (Parlett's "twice is enough"), and every coefficient
    is kept: ``A Q = Q H + beta q e^T`` holds to rounding even where ``A`` is not exactly symmetric. Where the space is
    exhausted (``beta`` negligible) the basis goes on with a fresh random direction, which ``H`` leaves uncoupled: a new
    block, in which a second copy of a multiple eigenvalue is found.

    Acts on the last axis; leading axes are independent problems.

    Args:
        matvec: ``A q`` for ``q`` of the shape of ``start``.
        start: ``(..., d)``, not zero.

    Raises:
        ValueError: ``start`` is zero or not finite.
    """

    def __init__(self, matvec: Matvec, start: Tensor) -> None:
        norm = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
        good = (norm > 0) & norm.isfinite()
        if not bool(good.all()):
            raise ValueError(f"start has norm {norm[~good][0].item():g}; expected a finite vector that is not zero")
        self.basis = [start / norm]
        self.rests: list[Tensor] = []
        """``|A q_j - Q Q^T A q_j|``, float64 ``(...)``."""
        self.block_start = torch.zeros(start.shape[:-1], dtype=torch.int64, device=start.device)
        """Where the block begins that the newest product belongs to."""
        self._matvec = matvec
        self._negligible = min(100 * torch.finfo(start.dtype).eps, 1e-6)
        self._generator = torch.Generator().manual_seed(0x6B72796C)
        self._columns: list[Tensor] = []  # column j: <q_i, A q_j> for i <= j, float64 (..., j + 1)
        self._exhausted: list[Tensor] = []

    @property
    def steps(self) -> int:
        """The number of products taken."""
        return len(self._columns)

    @property
    def exhausted(self) -> Tensor:
        """Whether the space of ``start`` itself is exhausted, bool ``(...)``; its products then hold all of it."""
        return torch.stack(self._exhausted).any(0)

    def extend(self) -> None:
        """Take one more product, and one more basis vector where the dimension allows."""
        if self._exhausted:
            self.block_start = torch.where(self._exhausted[-1], self.steps, self.block_start)
        product = self._matvec(self.basis[-1])
        scale = torch.linalg.vector_norm(product, dim=-1)
        if not bool(scale.isfinite().all()):
            raise FloatingPointError(f"product {self.steps + 1} with the matrix is not finite; check what makes it")
        rest, column = self._orthogonalised(product)
        beta = torch.linalg.vector_norm(rest, dim=-1)
        exhausted = beta <= self._negligible * scale
        self._columns.append(column)
        self.rests.append(beta.double())
        self._exhausted.append(exhausted)
        if self.steps == rest.shape[-1]:
            return
        following = rest / torch.where(exhausted, 1.0, beta)[..., None]
        if bool(exhausted.any()):
            following = torch.where(exhausted[..., None], self._fresh(rest), following)
        self.basis.append(following)

    def projected(self) -> Tensor:
        """``H`` of the products taken so far, float64 ``(..., m, m)``, not symmetrised."""
        size = self.steps
        matrix = self._columns[0].new_zeros((*self._columns[0].shape[:-1], size, size))
        for j, column in enumerate(self._columns):
            matrix[..., : j + 1, j] = column
            if j + 1 < size:
                matrix[..., j + 1, j] = torch.where(self._exhausted[j], 0.0, self.rests[j])
        return matrix

    def outside(self) -> Tensor:
        """For each basis vector the part of its product that ``Q H`` leaves out, float64 ``(..., m)``."""
        left_out = torch.stack(
            [torch.where(e, r, 0.0) for e, r in zip(self._exhausted, self.rests, strict=True)], dim=-1
        )
        left_out[..., -1] = self.rests[-1]
        return left_out

    def coupled(self) -> Tensor:
        """Which basis vectors belong to the space of ``start`` itself, before it was exhausted: bool ``(..., m)``."""
        ended = torch.stack(self._exhausted, dim=-1).long()
        return ended.cumsum(-1) == ended  # nothing has ended before

    def combination(self, coefficients: Tensor) -> Tensor:
        """``Q c`` for ``c`` of shape ``(..., m, k)``: ``(..., k, d)``."""
        weights = coefficients.to(self.basis[0].dtype)
        total: Tensor = weights[..., 0, :, None] * self.basis[0][..., None, :]
        for j in range(1, weights.shape[-2]):
            total += weights[..., j, :, None] * self.basis[j][..., None, :]
        return total

    def _orthogonalised(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = [torch.zeros(vector.shape[:-1], dtype=torch.float64, device=vector.device) for _ in self.basis]
        for _ in range(2):
            for index, q in enumerate(self.basis):
                overlap = (q * vector).sum(-1, keepdim=True)
                coefficients[index] += overlap[..., 0].double()
                vector = vector - overlap * q
        return vector, torch.stack(coefficients, dim=-1)

    def _fresh(self, like: Tensor) -> Tensor:
        """A random direction orthogonal to the basis; drawn anew in the rare case that the basis nearly holds it."""
        while True:
            drawn = torch.randn(like.shape, generator=self._generator, dtype=like.dtype).to(like.device)
            direction, _ = self._orthogonalised(drawn)
            length: Tensor = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
            if bool((length > 1e-3 * torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)).all()):
                direction, _ = self._orthogonalised(direction / length)
                unit: Tensor = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
                return unit
