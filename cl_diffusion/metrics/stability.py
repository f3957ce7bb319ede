"""Whether a direction that a linear surrogate explains survives what the surrogate leaves out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cl_diffusion.metrics.gram import Gram


class Stability(NamedTuple):
    """Of the leading direction of ``G_lin = E[g_lin g_lin^T]`` in ``G = E[g g^T] = G_lin + R``.

    Attributes:
        sine: of the angle between the leading directions, measured.
        perturbation: ``|R|_op``; ``R`` is indefinite, so the larger of both ends.
        gap: ``lambda_1 - lambda_2`` of ``G_lin``.
        ratio: ``|R| / gap``.
        bound: ``sin a <= 2 |R| / gap`` (Yu, Wang & Samworth 2015, corollary 1); more than 1 says nothing.
        sharp_bound: ``sin 2a <= 2 |R| / gap``, on ``sin a``, where ``|R| < gap / 2``; infinite elsewhere.
        residual_bound: ``|R v_lin| / (lambda_1(G_lin) - lambda_2(G))`` where that is positive; infinite elsewhere.
        bound_cosine: ``sqrt(1 - b^2)`` with the least of the three bounds: the cosine that is certain; 0 where none is.
    """

    sine: float
    perturbation: float
    gap: float
    ratio: float
    bound: float
    sharp_bound: float
    residual_bound: float
    bound_cosine: float


def stability(products: torch.Tensor, held_out: bool = False) -> Stability:
    """From inner products of ``n`` gradients, followed by the ``n`` of the surrogate at the same draws: ``(2n, 2n)``.

    With the vectors as columns of ``B`` and ``D = diag(1, .., -1, ..)``, ``R = B D B^T / n``, whose eigenvalues other
    than 0 are those of ``K^(1/2) D K^(1/2) / n``. Nothing as long as a gradient is needed. All is NaN where
    all gradients of the one or the other are zero: there is no direction then.

    Args:
        products: the inner products.
        held_out: whether the bounds are to be of the matrices that the samples are drawn from. Few samples have a
            leading eigenvalue above the others even where the matrix has none, so ``lambda_1`` is then along a
            direction from one half, on the other half (no more than it is, in the mean), and ``lambda_2`` what the
            samples' two leading ones have above that (no less than it is); ``R`` of few samples is too large already.
            Not the angle: noise that both matrices have makes their directions alike (``alignment``).

    Raises:
        ValueError: an odd number of gradients.
    """
    gram = Gram(products)
    if len(gram) % 2:
        raise ValueError(f"products of {len(gram)} gradients; expected those of n samples, then n of the surrogate")
    n = len(gram) // 2
    whole, linear = torch.arange(n), torch.arange(n, 2 * n)
    v, v_linear = gram.leading(whole), gram.leading(linear)
    if not (v.any() and v_linear.any()):
        return Stability(*[math.nan] * len(Stability._fields))
    values, vectors = torch.linalg.eigh(gram.products)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    signs = torch.ones(2 * n, dtype=torch.float64)
    signs[n:] = -1
    perturbation = float(torch.linalg.eigvalsh(root @ (signs[:, None] * root) / n).abs().max())
    (first, second), (_, second_of_whole) = (_eigenvalues(gram, members, held_out) for members in (linear, whole))
    gap = first - second
    moved = signs * (gram.products @ v_linear) / n  # R v_lin = B D B^T B c / n
    length = max(0.0, gram.inner(moved, moved)) ** 0.5
    apart = first - second_of_whole
    ratio = perturbation / gap if gap > 0 else math.inf
    sharp = math.sin(math.asin(2 * ratio) / 2) if ratio < 0.5 else math.inf
    a_posteriori = length / apart if apart > 0 else math.inf
    return Stability(
        sine=max(0.0, 1 - gram.cosine(v, v_linear) ** 2) ** 0.5,
        perturbation=perturbation,
        gap=gap,
        ratio=ratio,
        bound=2 * ratio,
        sharp_bound=sharp,
        residual_bound=a_posteriori,
        bound_cosine=max(0.0, 1 - min(2 * ratio, sharp, a_posteriori) ** 2) ** 0.5,
    )


def _eigenvalues(gram: Gram, members: torch.Tensor, held_out: bool) -> tuple[float, float]:
    """The leading two of ``G``, or what is no more than the first and no less than the second in the mean."""
    n = len(members)
    values = torch.linalg.eigvalsh(gram.products[members][:, members] / n).flip(0)
    first, second = float(values[0]), float(values[1]) if n > 1 else 0.0
    if not held_out:
        return first, second
    halves = members[::2], members[1::2]
    other = sum(gram.along(gram.leading(one), rest) for one, rest in (halves, halves[::-1])) / 2
    return other, first + second - other
