"""What can be said of gradients from their inner products: spectra and directions of their second moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """Of ``F = 1/n sum_i g_i g_i^T``, with ``mu = 1/n sum_i g_i`` and leading eigenpair ``(lambda_1, v)``.

    Attributes:
        eigenvalues: descending, float64 ``(n,)``; all others of ``F`` are zero.
        trace: their sum, ``E|g|^2``.
        leading_share: ``lambda_1 / trace``.
        second_to_first: ``lambda_2 / lambda_1``.
        effective_rank: ``tr(F)^2 / tr(F^2)``, at most ``n``.
        effective_rank_corrected: the same with ``tr(F)^2`` and ``tr(F^2)`` from pairs of different samples, which have
            no bias: about that of the matrix that the samples are drawn from, however few they are.
        leading_error: ``|F - lambda_1 v v^T|_F / |F|_F``, the least of any rank one.
        mean_error: ``|F - c mu mu^T|_F / |F|_F`` with the best ``c``.
        mean_share: ``|mu|^2 / trace``, about ``1 / n`` of gradients without a mean.
        cosine_to_mean: of ``g_i`` with the mean of all others, averaged over samples: about 0 of gradients without a
            mean, where ``cos(g_i, mu)`` is about ``1 / sqrt(n)``, for ``mu`` has its part of ``g_i``.
        mean_to_leading: ``|cos(mu, v)|``.
    """

    eigenvalues: Tensor
    trace: float
    leading_share: float
    second_to_first: float
    effective_rank: float
    effective_rank_corrected: float
    leading_error: float
    mean_error: float
    mean_share: float
    cosine_to_mean: float
    mean_to_leading: float


class Gram:
    """Inner products ``K_ij = g_i^T g_j`` of gradients that need not be kept.

    A direction in their span is given by its coordinates ``c``, float64 ``(n,)``, and is ``sum_i c_i g_i``; sets of
    samples (a task, a half, a band) by their positions. So whatever is compared shares one matrix, and with it samples,
    noise and weights of the model.

    Args:
        products: symmetric ``(n, n)``, summed in float64.

    Raises:
        ValueError: ``products`` is not square, empty, or not finite.

    Example:
        >>> gradients = torch.tensor([[3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        >>> Gram(gradients @ gradients.T).products
        tensor([[ 9.,  9.],
                [ 9., 25.]], dtype=torch.float64)
    """

    def __init__(self, products: Tensor) -> None:
        square = products.ndim == 2 and products.shape[0] == products.shape[1] > 0
        if not square or not bool(products.isfinite().all()):
            raise ValueError(
                f"products of shape {tuple(products.shape)}; expected inner products (n, n) of n gradients, all finite"
            )
        products = products.detach().to("cpu", torch.float64)
        self.products = (products + products.T) / 2

    def __len__(self) -> int:
        return len(self.products)

    def mean(self, members: Sequence[int] | Tensor | None = None) -> Tensor:
        """Coordinates of ``mu``, over some samples or all."""
        chosen, coordinates = self._members(members), torch.zeros(len(self), dtype=torch.float64)
        coordinates[chosen] = 1 / len(chosen)
        return coordinates

    def leading(self, members: Sequence[int] | Tensor | None = None) -> Tensor:
        """Coordinates of the unit leading eigenvector ``v`` of ``F`` over some samples, of either sign.

        Zero where all gradients are: there is no direction then.
        """
        chosen, coordinates = self._members(members), torch.zeros(len(self), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.products[chosen][:, chosen])
        if values[-1] > 0:
            coordinates[chosen] = vectors[:, -1] / values[-1].sqrt()
        return coordinates

    def inner(self, a: Tensor, b: Tensor) -> float:
        """Of two directions."""
        return float(a @ self.products @ b)

    def cosine(self, a: Tensor, b: Tensor) -> float:
        """Of two directions, in [-1, 1]; NaN where one of them is zero."""
        lengths = self.inner(a, a) * self.inner(b, b)
        return max(-1.0, min(1.0, self.inner(a, b) / lengths**0.5)) if lengths > 0 else math.nan

    def spectrum(self, members: Sequence[int] | Tensor | None = None) -> Spectrum:
        """Of ``F`` over some samples, or all: ``K / n`` has its eigenvalues. NaN where all gradients are zero.

        Raises:
            ValueError: fewer than two samples.
        """
        chosen = self._members(members)
        n = len(chosen)
        if n < 2:
            raise ValueError(f"members={chosen.tolist()}; expected at least 2 samples for a spectrum")
        v, mu = self.leading(chosen), self.mean(chosen)
        products = self.products[chosen][:, chosen]
        values = torch.linalg.eigvalsh(products / n).flip(0).clamp(min=0.0)
        trace, norm = float(values.sum()), float(torch.linalg.vector_norm(values))
        if trace == 0:
            return Spectrum(values, 0.0, *[math.nan] * (len(Spectrum._fields) - 2))
        along_mean = products.mean(1)  # g_i^T mu
        pairs = _of_pairs(products.square())
        mean_squared = self.inner(mu, mu)
        own = products.diagonal()
        of_others = n * along_mean - own
        lengths = (own * (n**2 * mean_squared - 2 * n * along_mean + own)).clamp(min=0.0).sqrt()
        captured = float(along_mean.square().mean()) / mean_squared if mean_squared > 0 else 0.0
        return Spectrum(
            eigenvalues=values,
            trace=trace,
            leading_share=float(values[0]) / trace,
            second_to_first=float(values[1] / values[0]),
            effective_rank=(trace / norm) ** 2,
            effective_rank_corrected=_of_pairs(torch.outer(own, own)) / pairs if pairs > 0 else math.inf,
            leading_error=float(torch.linalg.vector_norm(values[1:])) / norm,
            mean_error=max(0.0, 1 - (captured / norm) ** 2) ** 0.5,
            mean_share=mean_squared / trace,
            cosine_to_mean=float((of_others / lengths).nan_to_num(0.0, 0.0, 0.0).mean()),
            mean_to_leading=abs(self.cosine(mu, v)),
        )

    def weighted(self, weights: Tensor) -> Gram:
        """That of ``sqrt(a_i) g_i``; ``a`` is ``(n,)``, >= 0. ``F`` is then ``E[a g g^T]``."""
        scale = weights.to(torch.float64).sqrt()
        return Gram(scale[:, None] * self.products * scale)

    def norm_squared(self, members: Sequence[int] | Tensor | None = None) -> float:
        """``|F|_F^2 = tr F^2`` without bias, from pairs of different samples."""
        chosen = self._members(members)
        return _of_pairs(self.products[chosen][:, chosen].square())

    def diagonal_error(self, squares: Tensor, members: Sequence[int] | Tensor) -> float:
        """``|F - diag F|_F / |F|_F`` of the matrix that some samples are drawn from.

        Both norms from pairs of different samples: those of the samples' own matrix would be far from diagonal even
        where ``F`` is the identity. See ``relative_error`` for what is below 0 or NaN.

        Args:
            squares: inner products of their squared entries, ``(g_i * g_i)^T (g_j * g_j)``, in the members' order.
            members: which samples.
        """
        return relative_error(_of_pairs(squares), self.norm_squared(members))

    def along_squared(self, direction: Tensor, members: Sequence[int] | Tensor | None = None) -> float:
        """``(u^T F u)^2`` without bias, from pairs of different samples; of those that ``u`` was not found on."""
        along = (self.products[self._members(members)] @ direction).square()
        return _of_pairs(torch.outer(along, along))

    def along(self, direction: Tensor, members: Sequence[int] | Tensor | None = None) -> float:
        """``u^T F u`` of a direction, over some samples or all."""
        return float((self.products[self._members(members)] @ direction).square().mean())

    def _members(self, members: Sequence[int] | Tensor | None) -> Tensor:
        return torch.arange(len(self)) if members is None else torch.as_tensor(members)


def _of_pairs(matrix: Tensor) -> float:
    """The mean of the entries off the diagonal; NaN where there is none."""
    n = len(matrix)
    return float(matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)) if n > 1 else math.nan


def relative_error(kept: float, whole: float) -> float:
    """``sqrt(1 - kept / whole)``, from the squared norms of a part of a matrix and of all of it.

    Where both are estimates the difference may be below 0, and the root is then that of its size with its sign: cut
    off, it would be an error of exactly 0 that every half of the samples confirms. NaN where ``whole`` is not told.
    """
    if not whole > 0:
        return math.nan
    return signed_root(1 - kept / whole)


def signed_root(squared: float) -> float:
    """The root of the size of an estimated square, with its sign."""
    return math.copysign(math.sqrt(abs(squared)), squared)
