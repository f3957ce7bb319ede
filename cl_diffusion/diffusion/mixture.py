"""Data whose every posterior is known: a mixture of Gaussians."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.schedule import NoiseSchedule


class Components(NamedTuple):
    """Mixtures ``sum_j w_j N(m_j, S_j)``, one a row: ``(B, K)``, ``(B, K, d)`` and ``(B or 1, K, d, d)``."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """``(B, d)``."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """``(B, d, d)``: within the components, and between them."""
        apart = self.means - self.mean[..., None, :]
        between = apart[..., :, None] * apart[..., None, :]
        return (self.weights[..., None, None] * (self.covariances + between)).sum(-3)

    def log_density(self, x: Tensor) -> Tensor:
        """Of ``x``, ``(..., B, d)``: ``(..., B)``."""
        return (_log_normal(x[..., None, :] - self.means, self.covariances) + self.weights.log()).logsumexp(-1)


class GaussianMixture:
    """``x0 ~ sum_j w_j N(m_j, S_j)`` in ``d`` dimensions, and what is known of it through noise, in closed form.

    Args:
        weights: ``(K,)``, positive; taken to sum to one.
        means: ``(K, d)``.
        covariances: ``(K, d, d)``, positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights = weights / weights.sum()
        self.means = means
        self.covariances = covariances

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``(count, d)``."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        roots = torch.linalg.cholesky(self.covariances)
        drawn: Tensor = self.means[chosen] + (roots[chosen] @ z[..., None])[..., 0]
        return drawn

    def clean_given_noisy(self, x_t: Tensor, abar: float) -> Components:
        """``x0 | x_t`` for ``x_t = sqrt(abar) x0 + sqrt(1 - abar) eps``, ``(B, d)``: again a mixture.

        ``S'_j = (S_j^-1 + abar / (1 - abar) I)^-1`` and ``m'_j = S'_j (S_j^-1 m_j + sqrt(abar) / (1 - abar) x_t)``, the
        weights by Bayes' rule from ``N(x_t; sqrt(abar) m_j, abar S_j + (1 - abar) I)``.
        """
        eye = torch.eye(self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        precision = torch.linalg.inv(self.covariances)
        covariances = torch.linalg.inv(precision + abar / (1 - abar) * eye)
        pulled = (precision @ self.means[..., None])[..., 0] + abar**0.5 / (1 - abar) * x_t[:, None, :]
        means = (covariances @ pulled[..., None])[..., 0]
        apart = x_t[:, None, :] - abar**0.5 * self.means
        noisy = _log_normal(apart, (abar * self.covariances + (1 - abar) * eye)[None])
        weights = (noisy + self.weights.log()).softmax(-1)
        return Components(weights, means, covariances[None])

    def reverse(self, x_t: Tensor, schedule: NoiseSchedule, s: int, t: int) -> Components:
        """``x_s | x_t`` for the pair of timesteps, exactly; ``s = -1`` is the clean image."""
        q, clean = posterior(schedule, s, t), self.clean_given_noisy(x_t, schedule.alpha_bar_at(t))
        eye = torch.eye(self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        return Components(
            clean.weights, q.mean(clean.means, x_t[:, None, :]), q.c0**2 * clean.covariances + q.variance * eye
        )


def _log_normal(apart: Tensor, covariances: Tensor) -> Tensor:
    """``log N(apart; 0, S)`` of ``(..., B, K, d)`` and ``(B or 1, K, d, d)``: ``(..., B, K)``."""
    roots = torch.linalg.cholesky(covariances)
    whitened = (torch.linalg.inv(roots) * apart[..., None, :]).sum(-1)
    log_volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_density: Tensor = -(whitened.square().sum(-1) + apart.shape[-1] * math.log(2 * math.pi)) / 2 - log_volume
    return log_density
