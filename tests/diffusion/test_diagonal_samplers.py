"""Samplers with one variance a timestep, and one an element, against the posterior that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers import AnalyticSampler, HutchinsonSampler, NoiseStatistics
from cl_diffusion.diffusion.samplers.gaussian import GaussianSampler, Reverse
from cl_diffusion.diffusion.samplers.sampler import Step
from tests.diffusion.mixtures import SCHEDULE, exact, mixture
from tests.diffusion.networks import gaussian_denoiser

SHAPE = (1, 2, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(sampler: GaussianSampler, at: Reverse, normal: Callable[[], Tensor]) -> Tensor:
    return sampler.covariance(at, normal).noise(normal)


def test_a_hutchinson_step_has_the_diagonal_of_the_covariance() -> None:
    """With every sign vector of six dimensions as a probe it is the diagonal exactly; with some, on average."""
    data, x_t = mixture(6), torch.randn(1, *SHAPE, dtype=torch.float64, generator=generator(1))
    q = posterior(SCHEDULE, 5, 20)
    known = data.reverse(x_t.flatten(1), SCHEDULE, 5, 20).covariance.diagonal(dim1=-2, dim2=-1)
    signs = iter(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6).reshape(64, 1, *SHAPE))
    one = torch.ones_like(x_t)
    at = Reverse(exact(data), x_t, None, Step(5, 20), q, math.inf)
    noise = drawn(HutchinsonSampler(probes=64, clip=False), at, lambda: next(signs, one))
    torch.testing.assert_close(noise.flatten(1).square(), known)
    many = at._replace(x_t=x_t.expand(4000, -1, -1, -1).contiguous())
    source = generator(2)

    def normal() -> Tensor:
        return torch.randn(4000, *SHAPE, dtype=torch.float64, generator=source)

    noise = drawn(HutchinsonSampler(probes=2, clip=False), many, normal)
    torch.testing.assert_close(noise.flatten(1).var(0), known[0], rtol=0.15, atol=0)
    capped = drawn(HutchinsonSampler(probes=2, clip=False), many._replace(largest=0.01), normal)
    assert float(capped.std()) == pytest.approx(0.01, rel=0.05)


def test_the_analytic_variance_is_the_mean_posterior_variance() -> None:
    data, timesteps = mixture(6), [0, 5, 20, 39]
    images = data.sample(4000, generator(3)).reshape(-1, *SHAPE)
    statistics = NoiseStatistics.of(exact(data), images, None, timesteps, generator(4), batch_size=1000)
    for t in timesteps[1:]:
        abar, q = SCHEDULE.alpha_bar_at(t), posterior(SCHEDULE, t - 1, t)
        x_t = SCHEDULE.add_noise(images, torch.randn_like(images), torch.full((4000,), t))
        known = data.clean_given_noisy(x_t.flatten(1), abar).covariance.diagonal(dim1=-2, dim2=-1).mean()
        at = Reverse(exact(data), x_t[:1], None, Step(t - 1, t), q, math.inf)
        noise = drawn(AnalyticSampler(statistics), at, lambda: torch.ones(1, *SHAPE, dtype=torch.float64))
        assert float(noise.square().mean()) == pytest.approx(q.variance + q.c0**2 * float(known), rel=0.05)


def test_what_is_added_stays_in_the_range_of_images_and_within_the_bound() -> None:
    """A denoiser that knows nothing, of which the Jacobian says too much."""
    denoiser, one = gaussian_denoiser(SCHEDULE, 50.0), torch.ones(2, *SHAPE, dtype=torch.float64)
    q, x_t = posterior(SCHEDULE, 5, 20), 0.1 * one
    x0, _ = denoiser.estimates_at(x_t, 20)
    at = Reverse(denoiser, x_t, None, Step(5, 20), q, math.inf)
    noise = drawn(HutchinsonSampler(probes=1), at, lambda: one)
    torch.testing.assert_close(noise.square(), q.variance + q.c0**2 * (1 - x0.square()).clamp(min=0))
    unknown = AnalyticSampler(NoiseStatistics(torch.full((40,), -10.0, dtype=torch.float64)))
    torch.testing.assert_close(drawn(unknown, at, lambda: one).square(), one * (q.variance + q.c0**2))
    bounded = at._replace(largest=0.01)
    for sampler in (unknown, HutchinsonSampler(probes=1)):
        torch.testing.assert_close(drawn(sampler, bounded, lambda: one), 0.01 * one)


def test_few_analytic_steps_keep_the_variance_of_gaussian_data(tmp_path: Path) -> None:
    denoiser, timesteps = gaussian_denoiser(SCHEDULE, 0.5), [39, 29, 20, 10, 0]
    images = 0.5 * torch.randn(500, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    NoiseStatistics.of(denoiser, images, None, timesteps, generator(2)).save(tmp_path / "gamma.safetensors")
    sampler = AnalyticSampler(str(tmp_path / "gamma.safetensors"), 5, clip=False, clip_pixel=None)
    assert sampler.timesteps(SCHEDULE) == timesteps
    x = sampler.sample(denoiser, (1, 32, 32), num_images=16, generator=generator())
    assert float(x.var()) == pytest.approx(0.25, rel=0.1)
    with pytest.raises(ValueError, match=r"known at timesteps \[0, 10, 20, 29, 39\], and the chain visits 26"):
        AnalyticSampler(sampler.statistics, 4).sample(denoiser, (1, 4, 4), num_images=1)
    with pytest.raises(ValueError, match="probes=0"):
        HutchinsonSampler(probes=0)
