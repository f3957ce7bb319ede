"""How far a chain of Gaussian reverse steps is from the one that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cl_diffusion.diffusion.mixture import Components, GaussianMixture
from cl_diffusion.diffusion.posterior import Posterior, posterior
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.linalg.lanczos import square_root

Covariance = Callable[[Posterior, Tensor], Tensor]
"""From a step's coefficients and ``C = Cov[x0 | x_t]``, ``(B, d, d)``, to the covariance of the step, likewise."""


def full(q: Posterior, clean: Tensor) -> Tensor:
    """``Sigma = variance I + c0^2 C``."""
    return q.variance * _eye(clean) + q.c0**2 * clean


def diagonal(q: Posterior, clean: Tensor) -> Tensor:
    """The diagonal of ``Sigma``."""
    return torch.diag_embed(full(q, clean).diagonal(dim1=-2, dim2=-1))


def isotropic(q: Posterior, clean: Tensor) -> Tensor:
    """``tr(Sigma) / d I``, of each ``x_t``."""
    return full(q, clean).diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * _eye(clean)


def analytic(q: Posterior, clean: Tensor) -> Tensor:
    """``E tr(Sigma) / d I``, one number a timestep (Bao et al. 2022, 2201.06503)."""
    return isotropic(q, clean).mean(0, keepdim=True).expand_as(clean)


def large(q: Posterior, clean: Tensor) -> Tensor:
    """``beta I``."""
    return q.beta * _eye(clean).expand_as(clean)


def path_kl(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    covariances: Mapping[str, Covariance],
    *,
    samples: int = 1000,
    nodes: int = 28,
    seed: int = 0,
) -> dict[str, float]:
    """``sum_steps E_{x_t} KL(q(x_s | x_t) || N(mu, Sigma'))`` over all timesteps, ``mu`` the exact mean, in nats.

    Each step splits into ``KL(q || N(mu, Sigma))``, which no covariance avoids, and ``1/2 (log |Sigma'| / |Sigma| +
    tr(Sigma'^-1 Sigma) - d)``. The first is integrated over each component by tensor Gauss-Hermite quadrature, so in
    two or three dimensions; only ``x_t`` is Monte Carlo, the same noise for every covariance and number of steps. The
    prior's term is not in it (``prior_kl``); with that it bounds ``KL(q(x_0) || p(x_0))``, the likelihood lost.

    Args:
        mixture: the data.
        schedule: all of its timesteps are steps of the chain, the last to the clean image.
        covariances: each ``Sigma'``, by name.
        samples: of ``x_t``.
        nodes: of the quadrature, for each dimension.
        seed: of ``x_t``.
    """
    generator = torch.Generator().manual_seed(seed)
    x0 = mixture.sample(samples, generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    totals = dict.fromkeys(covariances, 0.0)
    for s, t in pairwise(range(-1, schedule.num_steps)):
        abar = schedule.alpha_bar_at(t)
        x_t = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise
        q = posterior(schedule, s, t)
        clean = mixture.clean_given_noisy(x_t, abar).covariance
        unavoidable = gaussian_excess(mixture.reverse(x_t, schedule, s, t), nodes)
        for name, covariance in covariances.items():
            totals[name] += float((unavoidable + divergence(full(q, clean), covariance(q, clean))).mean())
    return totals


def prior_kl(mixture: GaussianMixture, schedule: NoiseSchedule, *, nodes: int = 28) -> float:
    """``KL(q(x_T) || N(0, I))`` in nats, what starting from pure noise costs beside the path; any sampler pays it.

    Args:
        mixture: the data.
        schedule: whose last timestep is ``T``.
        nodes: of the quadrature, for each dimension.
    """
    abar = schedule.alpha_bar_at(schedule.num_steps - 1)
    eye = torch.eye(mixture.means.shape[-1], dtype=mixture.means.dtype)
    last = Components(
        mixture.weights[None] / mixture.weights.sum(),
        math.sqrt(abar) * mixture.means[None],
        abar * mixture.covariances[None] + (1 - abar) * eye,
    )
    covariance, mean = last.covariance, last.mean
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    of_moments = (trace + mean.square().sum(-1) - len(eye) - torch.linalg.slogdet(covariance)[1]) / 2
    return float(gaussian_excess(last, nodes) + of_moments)


COVARIANCES: dict[str, Covariance] = {
    "full": full,
    "diagonal": diagonal,
    "isotropic": isotropic,
    "analytic": analytic,
    "large": large,
}
"""Those that an exact posterior covariance leads to, and the one that needs none."""


def lanczos_path_kl(
    covariance: Tensor,
    schedule: NoiseSchedule,
    lanczos_steps: int,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> float:
    """``sum_steps KL(p(x_s | x_t) || q(x_s | x_t))`` for Gaussian data; ``p`` draws by ``lanczos_steps`` products.

    That noise, ``f(z) ~= sqrt(Sigma) z``, is no Gaussian's: its density is that of ``z`` over ``|det df/dz|``. The last
    step, to the clean image, is left out. All else is exact, so that this is what the Krylov space adds; it falls as
    ``T^-(2k - 1)``.

    Args:
        covariance: of the data, float64 ``(d, d)``.
        schedule: all of its timesteps are steps of the chain.
        lanczos_steps: ``k``.
        samples: of ``z``, the same in every step.
        seed: of ``z``.
    """
    size = len(covariance)
    z = torch.randn(samples, size, dtype=covariance.dtype, generator=torch.Generator().manual_seed(seed))
    eye, total = _eye(covariance), 0.0
    for s, t in pairwise(range(schedule.num_steps)):
        abar, q = schedule.alpha_bar_at(t), posterior(schedule, s, t)
        clean = torch.linalg.inv(torch.linalg.inv(covariance) + abar / (1 - abar) * eye)
        sigma = q.variance * eye + q.c0**2 * clean
        start = z.clone().requires_grad_()
        x = square_root(lambda v, sigma=sigma: v @ sigma, start, lanczos_steps, floor=q.variance).product  # type: ignore[misc]
        rows = [torch.autograd.grad(x[:, i].sum(), start, retain_graph=True)[0] for i in range(size)]
        log_volume = torch.linalg.slogdet(torch.stack(rows, dim=1))[1]
        x = x.detach()
        log_q = -((torch.linalg.solve(sigma, x.T).T * x).sum(-1) + torch.linalg.slogdet(sigma)[1]) / 2
        log_p = -z.square().sum(-1) / 2 - log_volume
        ratio = log_q - log_p
        total += float((ratio.expm1() - ratio).mean())  # the mean of q/p - 1 is 0: without it most of this is noise
    return total


def divergence(sigma: Tensor, other: Tensor) -> Tensor:
    """``KL(N(mu, sigma) || N(mu, other))``, ``(B,)``."""
    ratio = torch.linalg.solve(other, sigma)
    trace: Tensor = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    nats: Tensor = (trace - torch.linalg.slogdet(ratio)[1] - sigma.shape[-1]) / 2
    return nats


def gaussian_excess(mixture: Components, nodes: int) -> Tensor:
    """``KL(q || N(mean, covariance))`` of mixtures ``q`` from the Gaussian of their own moments, ``(B,)``."""
    points, weights = _hermite(nodes, mixture.means.shape[-1], mixture.means)
    roots = torch.linalg.cholesky(mixture.covariances)
    gaussian = Components(
        torch.ones_like(mixture.weights[:, :1]), mixture.mean[:, None, :], mixture.covariance[:, None]
    )
    excess = torch.zeros_like(mixture.weights[:, 0])
    for j in range(mixture.weights.shape[1]):
        x = mixture.means[:, j] + (roots[:, j] @ points[:, None, :, None])[..., 0]  # (nodes^d, B, d)
        excess = excess + mixture.weights[:, j] * (
            weights[:, None] * (mixture.log_density(x) - gaussian.log_density(x))
        ).sum(0)
    return excess


def _hermite(nodes: int, dimension: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``(nodes^d, d)`` and weights ``(nodes^d,)`` of the expectation under ``N(0, I)``."""
    x, w = (torch.from_numpy(part).to(like) for part in np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[x] * dimension).reshape(-1, dimension)
    weights = torch.cartesian_prod(*[w / w.sum()] * dimension).reshape(-1, dimension).prod(-1)
    return grid, weights


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
