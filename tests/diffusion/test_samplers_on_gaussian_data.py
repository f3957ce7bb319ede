"""Samplers with the exact denoiser of Gaussian data, where every chain is known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import AncestralSampler, DDIMSampler
from cl_diffusion.diffusion.samplers.trajectory import trajectory
from tests.diffusion.networks import gaussian_denoiser

SCHEDULE = NoiseSchedule.cosine(60)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampling_recovers_the_variance_of_gaussian_data(variance: str) -> None:
    """E[x0|x_t] exact, T = 1000: the discretisation is off by < 2%, 32768 samples by < 4% (5 standard deviations)."""
    schedule, std = NoiseSchedule.linear(), 0.5
    sampler = AncestralSampler(variance=variance, clip=False)
    x = sampler.sample(gaussian_denoiser(schedule, std), (1, 64, 64), num_images=8, generator=seeded())
    assert x.var().item() == pytest.approx(std**2, rel=0.06)
    assert abs(x.mean().item()) < 5 * std / 32768**0.5


def test_small_and_large_bracket_the_variance_of_gaussian_data() -> None:
    variances = []
    for variance in ("small", "large"):
        sampler = AncestralSampler(10, variance, clip=False)
        x = sampler.sample(gaussian_denoiser(SCHEDULE, 0.5), (1, 64, 64), num_images=8, generator=seeded())
        variances.append(x.var().item())
    assert variances[0] < 0.9 * 0.25 < 1.1 * 0.25 < variances[1]


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_ddim_scales_unit_gaussian_data_by_a_product_of_cosines(steps: int) -> None:
    """Data N(0, 1): x_s = cos(phi_t - phi_s) x_t with cos(phi) = sqrt(abar), exactly and for any trajectory."""
    x_T = torch.randn(4, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    sampler = DDIMSampler(steps, clip=False)
    x = sampler.sample(gaussian_denoiser(SCHEDULE, 1.0), (1, 8, 8), num_images=4, generator=seeded())
    angles = [math.acos(math.sqrt(SCHEDULE.alpha_bar_at(t))) for t in [*trajectory(60, steps), -1]]
    scale = math.prod(math.cos(a - b) for a, b in pairwise(angles))
    torch.testing.assert_close(x, scale * x_T, rtol=1e-10, atol=1e-12)


def test_ddim_approaches_the_probability_flow_at_first_order() -> None:
    """Data N(0, s^2): the flow scales x_T by s / sqrt(s^2 abar_T + 1 - abar_T); twice the steps, half the error."""
    schedule, std = NoiseSchedule.linear(), 0.5
    abar = schedule.alpha_bar_at(999)
    exact = std / math.sqrt(std**2 * abar + 1 - abar)
    errors = []
    for steps in (50, 100, 200):
        sampler = DDIMSampler(steps, clip=False)
        x = sampler.sample(gaussian_denoiser(schedule, std), (1, 1, 1), num_images=1, generator=seeded())
        x_T = torch.randn(1, 1, 1, 1, generator=seeded(), dtype=torch.float64)
        errors.append(abs((x / x_T).item() / exact - 1))
    assert errors[2] < 0.02
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
