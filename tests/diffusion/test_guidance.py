"""Guidance: what the mean of a step becomes, against the posterior of one component of a mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser
from cl_diffusion.diffusion.mixture import GaussianMixture
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers import (
    AncestralSampler,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DDIMSampler,
    GaussianSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    Sampler,
)
from cl_diffusion.diffusion.samplers.sampler import Step
from tests.diffusion.mixtures import SCHEDULE, exact, mixture
from tests.diffusion.networks import Wave, tiny_unet

SHAPE = (1, 2, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Component(nn.Module):
    """The exact classifier of noisy images: to which component of the mixture they belong."""

    def __init__(self, data: GaussianMixture) -> None:
        super().__init__()
        self.data = data

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.data.clean_given_noisy(x.flatten(1), SCHEDULE.alpha_bar_at(int(s[0]))).weights.log()


def mean_of_step(sampler: Sampler, denoiser: Denoiser, x_t: Tensor, labels: Tensor, step: Step) -> Tensor:
    return sampler.step(denoiser, x_t, labels, step, lambda: 1e-12 * torch.ones_like(x_t))


def test_the_mean_moves_by_the_covariance_times_the_gradient_there() -> None:
    data, x_t, labels, step = mixture(6), normal(5, *SHAPE, seed=1), torch.tensor([0, 1, 2, 0, 1]), Step(10, 20)
    known = data.reverse(x_t.flatten(1), SCHEDULE, step.s, step.t)
    mean = known.mean.clone().requires_grad_()
    logits = Component(data)(mean, torch.full((5,), step.s))
    (gradient,) = torch.autograd.grad(logits.log_softmax(1).gather(1, labels[:, None]).sum(), mean)
    shifts = {
        "full": (known.covariance @ gradient[..., None])[..., 0],
        "isotropic": posterior(SCHEDULE, step.s, step.t).beta * gradient,
    }
    inner: dict[str, GaussianSampler] = {
        "full": LanczosGaussianSampler(lanczos_steps=1, clip=False),
        "isotropic": AncestralSampler(variance="large", clip=False),
    }
    for name, sampler in inner.items():
        found = mean_of_step(ClassifierGuidance(sampler, Component(data)), exact(data), x_t, labels, step)
        torch.testing.assert_close(found.flatten(1), known.mean + shifts[name])


@pytest.mark.parametrize("inner", [LanczosGaussianSampler(lanczos_steps=1, clip=False), AncestralSampler(clip=False)])
def test_short_guided_steps_have_the_mean_of_the_class(inner: GaussianSampler) -> None:
    """To first order in the step for every covariance: what is left is the curvature of ``log p(y | x)``."""
    data, labels = mixture(6), torch.tensor([0, 1, 2]).repeat(40)
    x0, left = data.sample(120, torch.Generator().manual_seed(3)), []
    parts = [GaussianMixture(torch.ones(1).double(), data.means[[y]], data.covariances[[y]]) for y in range(3)]
    for s, t in ((14, 20), (17, 20), (19, 20)):
        x_t = SCHEDULE.add_noise(x0, normal(120, 6, seed=4), torch.full((120,), t))
        rows = [parts[y].reverse(x[None], SCHEDULE, s, t).mean for x, y in zip(x_t, labels.tolist(), strict=True)]
        known, at = torch.cat(rows).reshape(-1, *SHAPE), x_t.reshape(-1, *SHAPE)
        guided, plain = (
            mean_of_step(sampler, exact(data), at, labels, Step(s, t))
            for sampler in (ClassifierGuidance(inner, Component(data)), inner)
        )
        left.append(float((guided - known).norm() / (plain - known).norm()))
    assert left[2] < 0.1
    assert left[2] < 0.5 * left[1] < 0.5 * left[0]


def test_the_scale_multiplies_the_shift_and_zero_is_none() -> None:
    data, x_t, labels = mixture(6), normal(5, *SHAPE), torch.tensor([0, 1, 2, 0, 1])
    means = [
        mean_of_step(
            ClassifierGuidance(LanczosGaussianSampler(clip=False), Component(data), scale),
            exact(data), x_t, labels, Step(10, 20),
        )
        for scale in (0.0, 1.0, 3.0)
    ]  # fmt: skip
    torch.testing.assert_close(means[2] - means[0], 3 * (means[1] - means[0]))
    plain = mean_of_step(LanczosGaussianSampler(clip=False), exact(data), x_t, labels, Step(10, 20))
    torch.testing.assert_close(means[0], plain)


def test_guided_images_are_of_the_class() -> None:
    data, labels = mixture(6), torch.tensor([0, 1, 2]).repeat(50)
    shares = {}
    for scale in (0.0, 1.0, 2.0):
        sampler = ClassifierGuidance(LanczosGaussianSampler(20, 2, clip=False), Component(data), scale)
        x = sampler.sample(exact(data), SHAPE, labels, generator=torch.Generator().manual_seed(0))
        shares[scale] = float((data.clean_given_noisy(x.flatten(1), 0.999).weights.argmax(1) == labels).double().mean())
    assert shares[0.0] < 0.5
    assert shares[1.0] > 0.75
    assert shares[2.0] > 0.85


def test_evaluations_are_counted() -> None:
    network, count = tiny_unet(sample_size=8, num_class_embeds=4), 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    network.register_forward_hook(counted)
    denoiser = Denoiser(network, SCHEDULE, null_class=3)
    for inner in (DDIMSampler(4, eta=0.5), LanczosGaussianSampler(4, 2, product="differences", clip_pixel=None)):
        guided = ClassifierGuidance(inner, Pooled())
        count = 0
        guided.sample(denoiser, (1, 8, 8), torch.tensor([0, 2]))
        assert count == guided.evaluations(SCHEDULE)
    free = ClassifierFreeGuidance(DDIMSampler(4), 2.0)
    count = 0
    free.sample(denoiser, (1, 8, 8), torch.tensor([0, 2]))
    assert 2 * count == free.evaluations(SCHEDULE)  # a call of twice the batch is two


class Pooled(nn.Module):
    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        return x.flatten(1)[:, :3]


class Labelled(nn.Module):
    """``weight (label + 1)`` for every element, so that guidance can be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return (self.weight * (labels + 1).to(x)).reshape(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_guidance_goes_beyond_the_label_from_none(scale: float) -> None:
    denoiser, labels = Denoiser(Labelled(), SCHEDULE, "x0", null_class=9), torch.tensor([0, 4])
    sampler = ClassifierFreeGuidance(DDIMSampler([20], clip=False), scale)
    x = sampler.sample(denoiser, SHAPE, labels, generator=torch.Generator().manual_seed(0))
    wanted = 10 + scale * (labels + 1.0 - 10)
    torch.testing.assert_close(x, wanted.double().reshape(-1, 1, 1, 1).expand_as(x))
    without = DDIMSampler([20], clip=False).sample(denoiser, SHAPE, num_images=2)
    torch.testing.assert_close(without, torch.full_like(without, 10.0))


def test_every_sampler_can_be_guided_without_a_classifier() -> None:
    denoiser = Denoiser(tiny_unet(sample_size=8, num_class_embeds=4), SCHEDULE, null_class=3)
    labels = torch.tensor([0, 2])
    for inner in (AncestralSampler(4), LanczosGaussianSampler(4, 1), HutchinsonSampler(4, 1)):
        plain, guided = (
            s.sample(denoiser, (1, 8, 8), labels, generator=torch.Generator().manual_seed(0))
            for s in (inner, ClassifierFreeGuidance(inner, 1.0))
        )
        torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_guided_is_refused() -> None:
    denoiser, labels = Denoiser(Wave(), SCHEDULE), torch.tensor([0])
    with pytest.raises(ValueError, match=r"trained with labels dropped: DDPM\(label_dropout=0.1\)"):
        ClassifierFreeGuidance(DDIMSampler(2), 2.0).sample(denoiser, SHAPE, labels)
    with pytest.raises(ValueError, match="DDIMSampler with eta=0 adds no noise"):
        ClassifierGuidance(DDIMSampler(2), Pooled())
    for sampler in (ClassifierGuidance(AncestralSampler(2), Pooled()), ClassifierFreeGuidance(DDIMSampler(2), 2.0)):
        with pytest.raises(ValueError, match="labels=None: classifier"):
            sampler.sample(Denoiser(Wave(), SCHEDULE, null_class=3), SHAPE, num_images=1)
    conditional = Denoiser(tiny_unet(sample_size=8), SCHEDULE)
    with pytest.raises(ValueError, match="draws with labels alone: give ClassifierGuidance.conditional=True."):
        ClassifierGuidance(AncestralSampler(2), Pooled()).sample(conditional, (1, 8, 8), labels)
    ClassifierGuidance(AncestralSampler(2), Pooled(), conditional=True).sample(conditional, (1, 8, 8), labels)
    with pytest.raises(ValueError, match="labels run from 3 to 3, but the network embeds num_classes=2"):
        DDIMSampler(2).sample(Denoiser(tiny_unet(), SCHEDULE, null_class=2), (1, 8, 8), torch.tensor([3]))
