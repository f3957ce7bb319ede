"""The distance of a chain from its own reverse, against what is known."""

from __future__ import annotations

import math

import pytest
import torch

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.mixture import GaussianMixture
from cl_diffusion.metrics.path_kl import COVARIANCES, divergence, gaussian_excess, lanczos_path_kl, path_kl, prior_kl

D = torch.float64
BROAD = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=D),
    torch.tensor([[0.0, 0.0], [1.5, 0.5], [-1.0, 1.2]], dtype=D),
    torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.6]], [[0.4, 0.1], [0.1, 0.2]]], dtype=D),
)


def uniform(steps: int) -> NoiseSchedule:
    """Linear variance-preserving, beta(u) = 0.1 .. 20, at u = 1/T .. 1."""
    u = torch.arange(1, steps + 1, dtype=D) / steps
    return NoiseSchedule(torch.exp(-(0.1 * u + 19.9 * u.square() / 2)))


def test_the_full_covariance_of_gaussian_data_is_exact() -> None:
    gaussian = GaussianMixture(BROAD.weights[:1], BROAD.means[:1], BROAD.covariances[:1])
    found = path_kl(gaussian, uniform(8), COVARIANCES, samples=20, nodes=6)
    assert abs(found["full"]) < 1e-10
    assert found["full"] < found["diagonal"] < found["isotropic"] <= found["analytic"] + 1e-12 < found["large"]


def test_the_order_of_the_covariances_and_of_the_steps() -> None:
    coarse, fine = (path_kl(BROAD, uniform(steps), COVARIANCES, samples=60, nodes=10) for steps in (8, 16))
    for found in (coarse, fine):
        assert 0 < found["full"] < found["diagonal"] < found["isotropic"] < found["analytic"] < found["large"]
    assert all(fine[name] < coarse[name] for name in COVARIANCES)
    assert coarse["full"] / fine["full"] > coarse["diagonal"] / fine["diagonal"]


@pytest.mark.slow
def test_the_slopes_are_those_of_the_theory() -> None:
    """T^-2 with the full covariance, T^-1 with less (2 minutes)."""
    found = {steps: path_kl(BROAD, uniform(steps), COVARIANCES, samples=200, nodes=16) for steps in (64, 128, 256, 512)}
    for coarse, fine in ((64, 128), (128, 256), (256, 512)):
        for name in COVARIANCES:
            slope = math.log2(found[fine][name] / found[coarse][name])
            if name == "full":
                assert -2.2 <= slope <= -1.7
            else:
                assert slope == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize(("products", "slope"), [(1, -1), (2, -3), (3, -5)])
def test_what_a_krylov_space_adds_falls_twice_as_fast_as_it_grows(products: int, slope: int) -> None:
    covariance = torch.diag(torch.tensor([0.1, 0.3, 0.8, 2.0], dtype=D))
    coarse, fine = (lanczos_path_kl(covariance, uniform(steps), products, samples=200) for steps in (32, 64))
    assert math.log2(fine / coarse) == pytest.approx(slope, abs=0.1)


def test_a_whole_krylov_space_adds_nothing() -> None:
    covariance = torch.diag(torch.tensor([0.1, 0.8, 2.0], dtype=D))
    assert abs(lanczos_path_kl(covariance, uniform(8), 3, samples=50)) < 1e-12


def test_a_divergence_of_gaussians_is_torch_s() -> None:
    roots = torch.randn(5, 3, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    sigma, other = (root @ root.mT + 0.1 * torch.eye(3, dtype=D) for root in (roots, roots.flip(0)))
    normal = torch.distributions.MultivariateNormal
    zero = torch.zeros(3, dtype=D)
    expected = torch.distributions.kl_divergence(normal(zero, sigma), normal(zero, other))
    torch.testing.assert_close(divergence(sigma, other), expected)


def test_the_excess_is_that_of_sampling() -> None:
    """Against plain Monte Carlo over x_s, five standard errors."""
    schedule, x_t = uniform(8), torch.tensor([[0.3, -0.2]], dtype=D)
    step = BROAD.reverse(x_t, schedule, 3, 6)
    generator = torch.Generator().manual_seed(0)
    draws = GaussianMixture(step.weights[0], step.means[0], step.covariances[0]).sample(200_000, generator)
    gaussian = torch.distributions.MultivariateNormal(step.mean, step.covariance)
    ratio = step.log_density(draws[:, None, :])[:, 0] - gaussian.log_prob(draws)
    assert abs(float(gaussian_excess(step, 20)) - float(ratio.mean())) < 5 * float(ratio.std()) / 200_000**0.5


def test_the_prior_costs_what_is_left_of_the_data() -> None:
    """A Gaussian in closed form; a mixture by drawing from it."""
    schedule = NoiseSchedule([0.7])
    gaussian = GaussianMixture(BROAD.weights[:1], BROAD.means[1:2], BROAD.covariances[1:2])
    sigma = 0.7 * BROAD.covariances[1] + 0.3 * torch.eye(2, dtype=D)
    square = float(0.7 * BROAD.means[1].square().sum())
    known = (float(sigma.trace()) + square - 2 - float(torch.logdet(sigma))) / 2
    assert prior_kl(gaussian, schedule, nodes=6) == pytest.approx(known)
    x0 = BROAD.sample(100_000, torch.Generator().manual_seed(0))
    x = math.sqrt(0.7) * x0 + math.sqrt(0.3) * torch.randn(
        x0.shape, dtype=D, generator=torch.Generator().manual_seed(1)
    )
    parts = [
        torch.distributions.MultivariateNormal(math.sqrt(0.7) * m, 0.7 * s + 0.3 * torch.eye(2, dtype=D)).log_prob(x)
        for m, s in zip(BROAD.means, BROAD.covariances, strict=True)
    ]
    log_q = torch.logsumexp(torch.stack(parts, 1) + BROAD.weights.log(), 1)
    log_p = -x.square().sum(1) / 2 - math.log(2 * math.pi)
    assert prior_kl(BROAD, schedule) == pytest.approx(float((log_q - log_p).mean()), rel=0.03)
