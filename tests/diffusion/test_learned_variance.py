"""A variance that the network returns beside its prediction: its loss, and the sampler that draws with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from cl_diffusion.diffusion import Denoiser, DenoisingLoss, DrawnBatch, NoiseSchedule
from cl_diffusion.diffusion.hybrid_loss import HybridLoss, bits, grey_level_likelihood
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers import (
    AncestralSampler,
    ClassifierFreeGuidance,
    DDIMSampler,
    LanczosGaussianSampler,
    LearnedVarianceSampler,
)
from tests.diffusion.networks import Wave, gaussian_denoiser

SCHEDULE, STD = NoiseSchedule.linear(40, 1e-3, 0.3), 0.6


class WithVariance(nn.Module):
    """A network's prediction, and behind it one learned number a timestep."""

    def __init__(self, inner: nn.Module, value: float = 0.0) -> None:
        super().__init__()
        self.inner = inner
        self.value = nn.Parameter(torch.full((SCHEDULE.num_steps,), value, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        prediction = self.inner(x, t, labels)
        return torch.cat([prediction, self.value[t].reshape(-1, 1, 1, 1).expand_as(prediction)], 1)


def learned(inner: nn.Module, value: float = 0.0) -> Denoiser:
    return Denoiser(WithVariance(inner, value), SCHEDULE, "x0", learned_variance=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [1, 5, 39])
def test_the_bound_is_the_divergence_of_two_gaussians(t: int) -> None:
    images, x0, x_t, fraction = (normal(2, 1, 3, 3, seed=seed) for seed in range(4))
    q = posterior(SCHEDULE, t - 1, t)
    v = (fraction + 1) / 2
    std = (v * math.log(q.beta) + (1 - v) * math.log(q.variance)).exp().sqrt()
    known = kl_divergence(Normal(q.mean(images, x_t), math.sqrt(q.variance)), Normal(q.mean(x0, x_t), std))
    found = bits(SCHEDULE, images, x0, fraction, torch.tensor([t, t]))
    torch.testing.assert_close(found, known / math.log(2))


def test_the_grey_levels_share_all_of_the_probability() -> None:
    levels = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1
    for mean, std in ((0.1, 0.05), (-1.3, 0.4), (0.99, 0.01)):
        total = grey_level_likelihood(levels, torch.tensor(mean), torch.tensor(std)).exp().sum()
        torch.testing.assert_close(float(total), 1.0, atol=1e-9, rtol=0)
    x0 = levels[3].reshape(1, 1, 1, 1)
    first = bits(SCHEDULE, x0, x0 + 0.01, torch.zeros_like(x0), torch.tensor([0]))
    q0, q1 = posterior(SCHEDULE, -1, 0), posterior(SCHEDULE, 0, 1)
    std = math.exp(0.25 * (math.log(q0.beta) + math.log(q1.variance)))
    known = Normal(x0 + 0.01, std).cdf(x0 + 1 / 255) - Normal(x0 + 0.01, std).cdf(x0 - 1 / 255)
    torch.testing.assert_close(first, -known.log2())


def test_the_bound_trains_the_variance_alone_and_towards_the_posterior_of_gaussian_data() -> None:
    """At the variance of ``q(x_s | x_t)``, known for Gaussian data, the bound has no slope."""
    n, t = 200_000, 20
    q = posterior(SCHEDULE, t - 1, t)
    abar = SCHEDULE.alpha_bar_at(t)
    clean = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)
    best = math.log(q.variance + q.c0**2 * clean)
    value = 2 * (best - math.log(q.variance)) / (math.log(q.beta) - math.log(q.variance)) - 1
    drawn = DrawnBatch(STD * normal(n, 1, 1, 1), None, torch.full((n,), t), normal(n, 1, 1, 1, seed=1))
    slopes = []
    for moved in (value - 0.2, value, value + 0.2):
        denoiser = learned(gaussian_denoiser(SCHEDULE, STD).network, moved)
        HybridLoss()(denoiser, drawn).mean().backward()
        assert isinstance(denoiser.network, WithVariance)
        assert denoiser.network.value.grad is not None
        slopes.append(float(denoiser.network.value.grad[t]))
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.05 * min(-slopes[0], slopes[2])

    def gradient(loss: DenoisingLoss, denoiser: Denoiser) -> Tensor:
        loss(denoiser, drawn).mean().backward()
        grad = next(parameter.grad for name, parameter in denoiser.named_parameters() if "value" not in name)
        assert grad is not None
        return grad

    plain = gradient(DenoisingLoss(), gaussian_denoiser(SCHEDULE, STD))
    torch.testing.assert_close(gradient(HybridLoss(), learned(gaussian_denoiser(SCHEDULE, STD).network)), plain)


def test_the_bound_has_its_published_weight() -> None:
    drawn = DrawnBatch(normal(3, 1, 2, 2), None, torch.tensor([0, 5, 39]), normal(3, 1, 2, 2, seed=1))
    denoiser = learned(Wave().eval())
    x_t = SCHEDULE.add_noise(drawn.images, drawn.noise, drawn.timesteps)
    x0, _ = denoiser.estimates_at(x_t, drawn.timesteps)
    bound = bits(SCHEDULE, drawn.images, x0, torch.zeros_like(x0), drawn.timesteps).flatten(1).mean(1)
    torch.testing.assert_close(HybridLoss()(denoiser, drawn), DenoisingLoss()(denoiser, drawn) + 1e-3 * 40 * bound)


def test_half_sums_are_half_the_dimension_times_the_means() -> None:
    images = normal(3, 1, 2, 2)
    drawn = DrawnBatch(images, None, torch.tensor([0, 5, 39]), normal(3, 1, 2, 2, seed=1))
    denoiser = learned(Wave().eval())
    mean, half_sum = (HybridLoss(reduction=reduction)(denoiser, drawn) for reduction in ("mean", "half_sum"))
    torch.testing.assert_close(half_sum, 2 * mean)
    assert HybridLoss().describe(SCHEDULE) != DenoisingLoss().describe(SCHEDULE)


@pytest.mark.parametrize(("value", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_the_range_are_the_small_and_the_large_variance(value: float, variance: str) -> None:
    images = [
        sampler.sample(denoiser, (1, 2, 2), num_images=4, generator=torch.Generator().manual_seed(0))
        for sampler, denoiser in (
            (LearnedVarianceSampler(7, clip_pixel=None), learned(Wave(), value)),
            (AncestralSampler(7, variance), Denoiser(Wave(), SCHEDULE, "x0")),  # type: ignore[arg-type]
        )
    ]
    torch.testing.assert_close(*images)


def test_every_other_sampler_takes_the_prediction_alone() -> None:
    for sampler in (DDIMSampler(5), LanczosGaussianSampler(5, 2)):
        with_variance, without = (
            sampler.sample(denoiser, (1, 2, 2), num_images=4, generator=torch.Generator().manual_seed(0))
            for denoiser in (learned(Wave()), Denoiser(Wave(), SCHEDULE, "x0"))
        )
        torch.testing.assert_close(with_variance, without)


def test_guidance_keeps_the_variance_with_labels() -> None:
    class ByLabel(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            own = labels.reshape(-1, 1, 1, 1).to(x) - 1
            return torch.cat([0.3 * x + 0.1 * own, own.expand_as(x)], 1)

    denoiser = Denoiser(ByLabel(), SCHEDULE, "x0", null_class=1, learned_variance=True)
    small = Denoiser(ByLabel(), SCHEDULE, "x0", null_class=1, learned_variance=True)
    labels = torch.zeros(4, dtype=torch.int64)  # whose variance is the least; that without labels is in the middle
    drawn = [
        ClassifierFreeGuidance(sampler, 3.0).sample(
            model, (1, 2, 2), labels, generator=torch.Generator().manual_seed(0)
        )
        for sampler, model in (
            (LearnedVarianceSampler(6, clip_pixel=None), denoiser),
            (AncestralSampler(6, "small"), small),
        )
    ]
    torch.testing.assert_close(*drawn)


def test_what_has_no_variance_is_refused() -> None:
    plain = Denoiser(Wave(), SCHEDULE, "x0")
    with pytest.raises(ValueError, match="learned no variance: train DDPM.learned_variance=True."):
        LearnedVarianceSampler(5).sample(plain, (1, 2, 2), num_images=2)
    drawn = DrawnBatch(normal(2, 1, 2, 2), None, torch.tensor([3, 4]), normal(2, 1, 2, 2))
    with pytest.raises(ValueError, match="needs a Denoiser.learned_variance=True."):
        HybridLoss()(plain, drawn)
    with pytest.raises(ValueError, match="weight=0; expected a positive number"):
        HybridLoss(0)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(1, 4, 8, 8\): .*learned_variance=True, .*=4"):
        Denoiser(Wave(), SCHEDULE, "x0", learned_variance=True).check((2, 8, 8), 3)
