"""The Lanczos Gaussian sampler: the covariance of its noise, what it costs, and what can go wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, NoiseSchedule
from cl_diffusion.diffusion.mixture import GaussianMixture
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    AncestralSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    NoiseStatistics,
)
from cl_diffusion.diffusion.samplers.gaussian import GaussianSampler, Reverse
from cl_diffusion.diffusion.samplers.sampler import Step
from tests.diffusion.mixtures import SCHEDULE, exact, mixture
from tests.diffusion.networks import Wave, gaussian_denoiser, tiny_unet

SHAPE = (1, 2, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reverse(denoiser: Denoiser, x_t: Tensor, s: int, t: int, largest: float = math.inf) -> Reverse:
    return Reverse(denoiser, x_t, None, Step(s, t), posterior(denoiser.schedule, s, t), largest)


def clean_and_noise(sampler: GaussianSampler, at: Reverse, z: Tensor) -> tuple[Tensor, Tensor]:
    covariance = sampler.covariance(at, lambda: z)
    return covariance.x0, covariance.noise(lambda: z)


@pytest.mark.parametrize("product", ["vjp", "jvp", "symmetric", "differences"])
@pytest.mark.parametrize(("s", "t"), [(0, 1), (10, 30), (38, 39)])
def test_with_as_many_products_as_dimensions_the_noise_is_the_root_of_the_covariance(
    product: Any, s: int, t: int
) -> None:
    data, x_t, z = mixture(6), normal(5, *SHAPE, seed=1), normal(5, *SHAPE, seed=2)
    sampler = LanczosGaussianSampler(lanczos_steps=6, product=product, clip=False)
    x0, noise = clean_and_noise(sampler, reverse(exact(data), x_t, s, t), z)
    known = data.reverse(x_t.flatten(1), SCHEDULE, s, t).covariance
    values, vectors = torch.linalg.eigh(known)
    root = vectors * values.sqrt()[:, None, :] @ vectors.mT
    atol = 1e-3 if product == "differences" else 1e-7
    torch.testing.assert_close(noise.flatten(1), (root @ z.flatten(1)[..., None])[..., 0], rtol=1e-3, atol=atol)
    torch.testing.assert_close(x0.flatten(1), data.clean_given_noisy(x_t.flatten(1), SCHEDULE.alpha_bar_at(t)).mean)


def test_more_products_come_closer() -> None:
    data, x_t, z = mixture(6), normal(50, *SHAPE, seed=1), normal(50, *SHAPE, seed=2)
    at = reverse(exact(data), x_t, 5, 20)
    *fewer, whole = (
        clean_and_noise(LanczosGaussianSampler(lanczos_steps=k, clip=False), at, z)[1] for k in (1, 2, 3, 4, 6)
    )
    errors = [float((noise - whole).norm()) for noise in fewer]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 5


def test_each_image_of_a_batch_is_on_its_own() -> None:
    sampler, denoiser = LanczosGaussianSampler(lanczos_steps=3), exact(mixture(6))
    x_t, z = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2)
    _, together = clean_and_noise(sampler, reverse(denoiser, x_t, 5, 20), z)
    for i in range(4):
        _, alone = clean_and_noise(sampler, reverse(denoiser, x_t[i : i + 1], 5, 20), z[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_isotropic_data_are_exact_with_one_product_and_no_nan() -> None:
    denoiser = gaussian_denoiser(SCHEDULE, 0.5)
    sampler = LanczosGaussianSampler(20, lanczos_steps=5, clip=False, clip_pixel=None, report=True)
    x = sampler.sample(denoiser, (1, 32, 32), num_images=8, generator=torch.Generator().manual_seed(0))
    assert x.isfinite().all()
    assert x.var().item() == pytest.approx(0.25, rel=0.06)
    assert [report.exhausted for report in sampler.reports] == [1.0] * 19
    assert [report.evaluations for report in sampler.reports] == [2] * 19


def test_the_variance_of_gaussian_data_is_right_in_five_steps_where_small_and_large_are_not() -> None:
    """The full covariance is exact for Gaussian data, whatever the number of steps."""
    variances = {}
    for name, sampler in {
        "full": LanczosGaussianSampler(5, lanczos_steps=1, clip=False, clip_pixel=None),
        "small": AncestralSampler(5, "small", clip=False),
        "large": AncestralSampler(5, "large", clip=False),
    }.items():
        x = sampler.sample(
            gaussian_denoiser(SCHEDULE, 0.5), (1, 64, 64), num_images=8, generator=torch.Generator().manual_seed(0)
        )
        variances[name] = float(x.var()) / 0.25
    assert abs(variances["full"] - 1) < 0.15
    assert variances["small"] < 0.85
    assert variances["large"] > 1.15


def test_eigenvalues_are_raised_to_what_they_must_be_and_capped_where_asked() -> None:
    class Clamping(nn.Module):
        """A denoiser with a clamp inside: no derivative where it acts, too large a one elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return (self.weight * x).clamp(-1, 1)

    denoiser, x_t, z = Denoiser(Clamping(), SCHEDULE, "x0"), normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2)
    q = posterior(SCHEDULE, 5, 20)
    sampler = LanczosGaussianSampler(lanczos_steps=6, report=True)
    _, noise = clean_and_noise(sampler, reverse(denoiser, x_t, 5, 20), z)
    torch.testing.assert_close(noise, q.variance**0.5 * z)
    assert sampler.reports[-1].smallest < 0 < sampler.reports[-1].floor
    _, capped = clean_and_noise(sampler, reverse(denoiser, x_t, 5, 20, largest=0.01), z)
    torch.testing.assert_close(capped, 0.01 * z)


def test_the_trace_is_kept_within_that_of_images_and_left_alone_where_it_is() -> None:
    """Each image's covariance is ``excess`` times the largest that its mean allows; what chance explains is left."""

    class Overconfident(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return 0.5 + (1 + self.weight) * slope.reshape(-1, 1, 1, 1) * (x - x.detach())

    abar = SCHEDULE.alpha_bar_at(20)
    excess, most = torch.tensor([0.2, 1.0, 3.0, 1000.0], dtype=torch.float64), 1 - 0.5**2
    slope = excess * most * abar**0.5 / (1 - abar)
    denoiser, x_t, z = Denoiser(Overconfident(), SCHEDULE, "x0"), normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2)
    q = posterior(SCHEDULE, 5, 20)
    for clip, allowed in ((True, torch.where(excess > 9, 1, excess)), (False, excess)):
        sampler = LanczosGaussianSampler(lanczos_steps=2, clip=clip, report=True)
        _, noise = clean_and_noise(sampler, reverse(denoiser, x_t, 5, 20), z)
        known = (q.variance + q.c0**2 * allowed * most).sqrt().reshape(-1, 1, 1, 1)
        torch.testing.assert_close(noise, known * z)
        assert sampler.reports[-1].factor == pytest.approx(float((allowed / excess).mean()))


def test_the_covariance_of_binary_images_is_seldom_shrunk() -> None:
    """Where the denoiser is exact, and the bound attained."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    tiny = 1e-6 * torch.eye(6, dtype=torch.float64).expand(64, 6, 6)
    data = GaussianMixture(1 + normal(64, seed=3).square(), corners, tiny)
    sampler = LanczosGaussianSampler(12, lanczos_steps=3, report=True)
    x = sampler.sample(exact(data), SHAPE, num_images=500, generator=torch.Generator().manual_seed(0))
    assert (x.abs() - 1).abs().median() < 0.05
    factors = [report.factor for report in sampler.reports]
    assert len(factors) == 11
    assert min(factors) > 0.95


@pytest.mark.parametrize("steps", [5, 12])
def test_the_variance_along_the_one_direction_that_two_images_have_is_kept(steps: int) -> None:
    """The hardest case of the bound on the trace: all of it lies in one direction."""
    u = normal(16, seed=5).sign()
    data = GaussianMixture(
        torch.ones(2, dtype=torch.float64), torch.stack([u, -u]), 1e-4 * torch.eye(16).expand(2, -1, -1).double()
    )
    spread = {}
    for clip in (True, False):
        sampler = LanczosGaussianSampler(steps, lanczos_steps=2, clip=clip)
        x = next(
            x
            for t, x in sampler.chain(exact(data), (4000, 1, 4, 4), generator=torch.Generator().manual_seed(0))
            if t < 30
        )
        spread[clip] = float((x.flatten(1) @ u).var())
    assert spread[True] == pytest.approx(spread[False], rel=0.08)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["lanczos", "hutchinson", "analytic"])
def test_every_covariance_has_the_variance_of_gaussian_data_on_any_process(kind: str, eta: float) -> None:
    denoiser = gaussian_denoiser(SCHEDULE, 0.5)
    sampler: GaussianSampler
    if kind == "analytic":
        images = 0.5 * normal(400, 1, 8, 8, seed=1)
        visited = LanczosGaussianSampler(6).timesteps(SCHEDULE)
        statistics = NoiseStatistics.of(denoiser, images, None, visited, torch.Generator().manual_seed(2))
        sampler = AnalyticSampler(statistics, 6, clip=False, clip_pixel=None, eta=eta)
    elif kind == "hutchinson":
        sampler = HutchinsonSampler(6, probes=1, clip=False, clip_pixel=None, eta=eta)
    else:
        sampler = LanczosGaussianSampler(6, lanczos_steps=1, clip=False, clip_pixel=None, eta=eta)
    x = sampler.sample(denoiser, (1, 32, 32), num_images=16, generator=torch.Generator().manual_seed(0))
    assert float(x.var()) == pytest.approx(0.25, rel=0.12)


def test_guidance_moves_the_mean_by_no_more_than_the_noise_is_bounded_by() -> None:
    denoiser, x_t, z, v = (
        exact(mixture(6)),
        normal(5, *SHAPE, seed=1),
        normal(5, *SHAPE, seed=2),
        normal(5, *SHAPE, seed=3),
    )
    q = posterior(SCHEDULE, 5, 20)
    free, below, between = (
        LanczosGaussianSampler(lanczos_steps=6, clip=False).covariance(
            reverse(denoiser, x_t, 5, 20, largest), lambda: z
        )
        for largest in (math.inf, 0.01, 1.05 * q.variance**0.5)
    )
    torch.testing.assert_close(below.product(v), 1e-4 * v)
    whole, cut = free.product(v).flatten(1), between.product(v).flatten(1)
    ratio = cut.norm(dim=1) / v.flatten(1).norm(dim=1)
    assert (ratio <= 1.05**2 * q.variance * (1 + 1e-9)).all()
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(whole, cut), torch.ones(5, dtype=torch.float64))
    known = mixture(6).reverse(x_t.flatten(1), SCHEDULE, 5, 20).covariance
    torch.testing.assert_close(whole, (known @ v.flatten(1)[..., None])[..., 0])


def test_the_last_noise_is_bounded_by_so_many_grey_levels() -> None:
    bound = 2 / 255 * math.sqrt(math.pi / 2) * 2
    schedule = NoiseSchedule.linear(40, 1e-2, 0.3)
    for kind in (LanczosGaussianSampler, AncestralSampler):
        chains = {}
        for clip_pixel in (None, 2.0):
            sampler = kind(4, clip=False, clip_pixel=clip_pixel)
            generator = torch.Generator().manual_seed(0)
            chains[clip_pixel] = dict(
                sampler.chain(gaussian_denoiser(schedule, 1.0), (64, 1, 8, 8), generator=generator)
            )
        t, s = sampler.timesteps(schedule)[-2:]
        assert torch.equal(chains[None][t], chains[2.0][t])
        gain = chains[None][s] - chains[2.0][s]
        assert float(gain.std()) > 0.01  # what the bound took away
        q, x_t = posterior(schedule, s, t), chains[2.0][t]
        mean = q.mean(schedule.alpha_bar_at(t) ** 0.5 * x_t, x_t)
        assert float((chains[2.0][s] - mean).std()) == pytest.approx(bound, rel=0.05)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip_pixel=.*positive number of grey levels"):
            LanczosGaussianSampler(clip_pixel=wrong)


def test_asymmetry_is_reported_and_taken_out() -> None:
    class Skew(nn.Module):
        def __init__(self, skew: float) -> None:
            super().__init__()
            root = normal(6, 6, seed=5)
            self.matrix = nn.Parameter(root @ root.T / 24 + skew * (root - root.T))

        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return (x.flatten(1) @ self.matrix.T).reshape(x.shape)

    x_t, z = normal(20, *SHAPE, seed=1), normal(20, *SHAPE, seed=2)
    seen = {}
    for skew in (0.0, 0.02):
        for symmetrize in (False, True):
            sampler = LanczosGaussianSampler(lanczos_steps=6, symmetrize=symmetrize, report=True)
            _, noise = clean_and_noise(sampler, reverse(Denoiser(Skew(skew), SCHEDULE, "x0"), x_t, 5, 20), z)
            seen[skew, symmetrize] = sampler.reports[-1].asymmetry, noise
    assert seen[0.0, False][0] < 1e-10
    assert seen[0.02, False][0] > 1e-3
    assert seen[0.02, True][0] < 1e-10
    torch.testing.assert_close(seen[0.02, True][1], seen[0.0, True][1])
    torch.testing.assert_close(seen[0.02, False][1], seen[0.0, True][1])  # a whole basis takes it out too
    errors = {}
    for symmetrize in (False, True):
        sampler = LanczosGaussianSampler(lanczos_steps=4, symmetrize=symmetrize)
        _, noise = clean_and_noise(sampler, reverse(Denoiser(Skew(0.02), SCHEDULE, "x0"), x_t, 5, 20), z)
        errors[symmetrize] = float((noise - seen[0.0, True][1]).norm())
    assert errors[True] < 0.5 * errors[False]


def test_evaluations_are_counted_as_they_are_made() -> None:
    for options in ({}, {"symmetrize": True}, {"product": "jvp"}, {"product": "differences"}):
        sampler = LanczosGaussianSampler(5, lanczos_steps=2, report=True, **options)
        sampler.sample(Denoiser(tiny_unet(sample_size=8), SCHEDULE), (1, 8, 8), torch.tensor([0, 1]))
        assert sum(report.evaluations for report in sampler.reports) + 1 == sampler.evaluations(SCHEDULE)
        assert [report.t for report in sampler.reports] == sampler.timesteps(SCHEDULE)[:-1]


def test_training_mode_inference_mode_and_nan() -> None:
    denoiser = Denoiser(Wave(), SCHEDULE).train()
    sampler = LanczosGaussianSampler(4, lanczos_steps=3)
    with torch.inference_mode():
        first, second = (
            sampler.sample(denoiser, SHAPE, num_images=3, generator=torch.Generator().manual_seed(0)) for _ in range(2)
        )
    assert torch.equal(first, second)
    assert denoiser.training
    with torch.no_grad():
        denoiser.network.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="step from t=39 to 26 gave values that are not finite: check the weights"):
        sampler.sample(denoiser, SHAPE, num_images=3)
    with pytest.raises(ValueError, match="lanczos_steps=0"):
        LanczosGaussianSampler(lanczos_steps=0)
