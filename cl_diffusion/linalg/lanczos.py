"""Lanczos: a symmetric matrix seen through its products with vectors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cl_diffusion.linalg.krylov import Krylov, Matvec


class Eigenpairs(NamedTuple):
    """Ritz pairs, largest value first, and how well they hold.

    ``values``: float64 ``(..., k)``. ``vectors``: ``(..., k, d)``, orthonormal. ``residuals``: ``|A v - lambda v|``,
    float64 ``(..., k)``. ``steps``: products taken. ``converged``: whether every residual met the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    steps: int
    converged: bool


class SquareRoot(NamedTuple):
    """``sqrt(A) z``, and what its Krylov space says of ``A``.

    ``product``: ``(..., d)``. ``smallest``: the least Ritz value, before any bound, float64 ``(...)``. ``exhausted``:
    whether the space of ``z`` ended before ``steps`` products, so that the result is exact, bool ``(...)``.
    ``asymmetry``: of ``A - floor I`` in it, ``|H - H^T| / |H + H^T|``, Frobenius, float64 ``(...)``; NaN of a space of
    one dimension, which says nothing. ``steps``: products taken.
    """

    product: Tensor
    smallest: Tensor
    exhausted: Tensor
    asymmetry: Tensor
    steps: int


def square_root(matvec: Matvec, z: Tensor, steps: int, *, floor: float = 0.0, ceiling: float = math.inf) -> SquareRoot:
    """``sqrt(A) z ~= |z| Q sqrt(H) e_1``: Lanczos from ``z``, with full re-orthogonalisation (``Krylov``).

    ``H`` is symmetrised and its eigenvalues are brought into ``[floor, ceiling]``, in float64. With ``steps = d``, or
    where the space of ``z`` is exhausted, this is the exact root of ``A`` with its eigenvalues so bounded.

    Args:
        matvec: ``A q`` for ``q`` of the shape of ``z``.
        z: ``(..., d)``, not zero; acts on the last axis, leading axes are independent problems.
        steps: products at most; more than ``d`` are not taken.
        floor: >= 0.
        ceiling: >= ``floor``.

    Raises:
        ValueError: ``steps`` or a bound is out of range, or ``z`` is zero.
        FloatingPointError: a product is not finite.
    """
    if steps < 1 or not 0 <= floor <= ceiling:
        raise ValueError(f"steps={steps}, floor={floor}, ceiling={ceiling}; expected steps >= 1, 0 <= floor <= ceiling")
    krylov = Krylov(matvec, z)
    while krylov.steps < min(steps, z.shape[-1]):
        krylov.extend()
        if bool(krylov.exhausted.all()):
            break
    inside = krylov.coupled()
    projected = krylov.projected() * (inside[..., None] & inside[..., None, :])
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    own = vectors[..., 0, :].square() > 1e-20  # of the space of z; what was uncoupled has no part in e_1
    roots = values.clamp(floor, ceiling).sqrt()
    length = torch.linalg.vector_norm(z, dim=-1)[..., None, None]
    coordinates = length * (vectors @ (roots * vectors[..., 0, :])[..., None])
    above = projected - floor * inside.diag_embed().to(projected)
    skew = torch.linalg.matrix_norm(above - above.mT) / torch.linalg.matrix_norm(above + above.mT)
    return SquareRoot(
        krylov.combination(coordinates)[..., 0, :],
        torch.where(own, values, math.inf).amin(-1),
        krylov.exhausted,
        skew.nan_to_num(0.0) if krylov.steps > 1 else torch.full_like(skew, math.nan),
        krylov.steps,
    )


def lanczos_sqrt(matvec: Matvec, z: Tensor, steps: int) -> Tensor:
    """``sqrt(A) z`` for a symmetric positive semi-definite ``A``, by ``steps`` products; see ``square_root``.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> z = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> half = lanczos_sqrt(lambda q: a @ q, z, steps=2)
        >>> torch.allclose(lanczos_sqrt(lambda q: a @ q, half, steps=2), a @ z)
        True
    """
    return square_root(matvec, z, steps).product


def lanczos_eigenpairs(
    matvec: Matvec, start: Tensor, rank: int, *, tolerance: float = 1e-6, max_steps: int | None = None
) -> Eigenpairs:
    """The ``rank`` largest eigenvalues of a symmetric positive semi-definite ``A`` and their eigenvectors.

    Lanczos with full re-orthogonalisation (``Krylov``), without restart; it stops as soon as all ``rank`` residuals are
    at most ``tolerance`` times the largest Ritz value and, once a Krylov space was exhausted, no block that followed
    can hold a larger one. A residual bounds the error of its eigenvalue, and divided by the gap to the next that of its
    eigenvector (Parlett 1998, sections 4.5 and 11.7).

    Args:
        matvec: ``A q`` for ``q`` of the shape of ``start``.
        start: ``(..., d)``; acts on the last axis, leading axes are independent problems.
        rank: how many pairs, ``k``; no more than ``d`` are returned.
        tolerance: relative to the largest Ritz value.
        max_steps: products at most, and so vectors of length ``d`` kept; by default ``max(100, 10 k)``.

    Raises:
        ValueError: ``rank`` or ``max_steps`` leaves nothing to find, or ``start`` is zero.

    Example:
        >>> a = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64))
        >>> found = lanczos_eigenpairs(lambda q: a @ q, torch.ones(3, dtype=torch.float64), rank=2)
        >>> found.values.round(decimals=6), found.converged
        (tensor([5., 3.], dtype=torch.float64), True)
    """
    dimension = start.shape[-1]
    steps = max(100, 10 * rank) if max_steps is None else max_steps
    if rank < 1 or steps < rank:
        raise ValueError(f"rank={rank}, max_steps={max_steps}; expected 1 <= rank <= max_steps")
    krylov = Krylov(matvec, start)
    size = min(rank, dimension)
    while True:
        krylov.extend()
        if krylov.steps < size:
            continue
        values, coordinates, residuals = _ritz(krylov, size)
        allowed = tolerance * values[..., 0].clamp(min=0.0)
        small = (residuals <= allowed[..., None]).all(-1)
        complete = krylov.steps == dimension
        converged = bool((small & (complete or _nothing_larger(krylov, values[..., -1], allowed))).all())
        if converged or krylov.steps >= min(steps, dimension):
            vectors = krylov.combination(coordinates)
            return Eigenpairs(values.clamp(min=0.0), vectors, residuals, krylov.steps, converged)


def _ritz(krylov: Krylov, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, coordinates in the basis ``(..., m, k)`` and residual norms of the largest Ritz pairs.

    ``A Q y - theta Q y = Q (H - (H + H^T)/2) y`` and what ``Q H`` leaves out: the first is what ``A`` lacks of
    symmetry.
    """
    projected = krylov.projected()
    symmetric = (projected + projected.mT) / 2
    values, coordinates = torch.linalg.eigh(symmetric)
    values, coordinates = values.flip(-1)[..., :rank], coordinates.flip(-1)[..., :rank]
    asymmetric = torch.linalg.vector_norm((projected - symmetric) @ coordinates, dim=-2)
    outside = torch.linalg.vector_norm(krylov.outside()[..., None] * coordinates, dim=-2)
    return values, coordinates, torch.hypot(asymmetric, outside)


def _nothing_larger(krylov: Krylov, smallest: Tensor, allowed: Tensor) -> Tensor:
    """Whether what the basis does not hold has no eigenvalue above ``smallest``, the least of the values found.

    A start holds a part of every eigenvector, so an unfinished first block is judged by its residuals alone. A later
    block, or one that ended, has for its top value the largest eigenvalue of all that came neither in it nor before it
    and was left, so it must be known, and not exceed what was found.
    """
    projected = krylov.projected()
    position = torch.arange(krylov.steps, device=projected.device)
    inside = position >= krylov.block_start[..., None]
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2 * (inside[..., None] & inside[..., None, :]))
    rest = krylov.rests[-1]
    known = rest * vectors[..., -1, -1].abs() <= allowed
    ended = rest <= allowed * 1e-3
    first = (krylov.block_start == 0) & ~ended
    enough: Tensor = first | (known & (values[..., -1] <= smallest + allowed))
    return enough
