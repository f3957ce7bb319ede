"""Heads that learn the diagonal of the posterior covariance: what they regress, and what a sampler makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, DrawnBatch
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers import LearnedDiagonalSampler
from cl_diffusion.diffusion.samplers.gaussian import Reverse
from cl_diffusion.diffusion.samplers.sampler import Step
from cl_diffusion.diffusion.variance_head import VarianceHead
from tests.diffusion.mixtures import SCHEDULE, exact, mixture
from tests.diffusion.networks import tiny_unet

SHAPE, T = (1, 2, 3), 20


class WithFeatures(nn.Module):
    """An exact denoiser whose noisy images pass through a layer that a head can read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.conv_out = nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.conv_out.weight)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inner(self.conv_out(x), t, labels)


def problem(target: Any) -> tuple[Denoiser, VarianceHead]:
    network = WithFeatures(exact(mixture(6)).network).requires_grad_(False)
    return Denoiser(network, SCHEDULE, "x0"), VarianceHead.on(network, 1, target, width=16).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def known_ratio(x_t: Tensor, t: int) -> Tensor:
    abar = SCHEDULE.alpha_bar_at(t)
    clean = mixture(6).clean_given_noisy(x_t.flatten(1), abar).covariance.diagonal(dim1=-2, dim2=-1)
    return (clean * abar / (1 - abar)).reshape(x_t.shape)


def test_the_ocm_target_over_all_signs_is_the_diagonal() -> None:
    denoiser, head = problem("ocm")
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6).reshape(64, *SHAPE)
    x0, noise = normal(1, *SHAPE, seed=1), normal(1, *SHAPE, seed=2)
    drawn = DrawnBatch(x0.expand(64, -1, -1, -1), None, torch.full((64,), T), noise.expand(64, -1, -1, -1))
    features, wanted = head.question(denoiser, drawn, signs)
    x_t = SCHEDULE.add_noise(x0, noise, torch.tensor([T]))
    torch.testing.assert_close(features[:1], x_t)
    torch.testing.assert_close(1 + wanted.mean(0, keepdim=True), known_ratio(x_t, T))


@pytest.mark.parametrize("t", [5, T, 35])
def test_all_three_targets_have_the_mean_of_the_posterior_variance(t: int) -> None:
    data, n = mixture(6), 20_000
    x0 = data.sample(n, torch.Generator().manual_seed(3)).reshape(-1, *SHAPE)
    drawn = DrawnBatch(x0, None, torch.full((n,), t), normal(n, *SHAPE, seed=4))
    x_t = SCHEDULE.add_noise(x0, drawn.noise, drawn.timesteps)
    known = known_ratio(x_t, t).mean(0)
    for target in ("npr", "sn", "ocm"):
        denoiser, head = problem(target)
        _, wanted = head.question(denoiser, drawn, normal(n, *SHAPE, seed=5).sign())
        _, noise = denoiser.estimates_at(x_t, t)
        ratio = {"npr": wanted, "sn": wanted - noise.square(), "ocm": 1 + wanted}[target]
        error = 4 * ratio.std(0) / math.sqrt(n)
        assert ((ratio.mean(0) - known).abs() < error + 1e-9).all(), target


@pytest.mark.parametrize("target", ["npr", "ocm"])
def test_a_trained_head_draws_with_the_variance_of_the_posterior(target: Any, tmp_path: Path) -> None:
    """At one timestep, element by element and image by image; "sn" needs far more samples for the same."""
    denoiser, head = problem(target)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    x0 = mixture(6).sample(2048, torch.Generator().manual_seed(3)).reshape(-1, *SHAPE)
    for _ in range(120):
        images = x0[torch.randint(2048, (512,))]
        drawn = DrawnBatch(images, None, torch.full((512,), T), torch.randn_like(images))
        optimizer.zero_grad()
        head.losses(denoiser, drawn, torch.randn_like(images).sign()).mean().backward()
        optimizer.step()
    head.save(tmp_path / "head.safetensors")
    x_t = SCHEDULE.add_noise(x0, normal(2048, *SHAPE, seed=6), torch.full((2048,), T))
    q, abar, one = posterior(SCHEDULE, 5, T), SCHEDULE.alpha_bar_at(T), torch.ones_like(x_t)
    known = q.variance + q.c0**2 * known_ratio(x_t, T) * (1 - abar) / abar

    @torch.no_grad()
    def error(sampler: LearnedDiagonalSampler) -> float:
        """Root mean square, in standard deviations of the variance itself: 1 is what any constant has at best."""
        sampler.head.double()
        noise = sampler.covariance(Reverse(denoiser, x_t, None, Step(5, T), q), lambda: one).noise(lambda: one)
        return float((noise.square() - known).square().mean().sqrt() / known.std())

    assert error(LearnedDiagonalSampler(str(tmp_path / "head.safetensors"))) < 0.7
    assert error(LearnedDiagonalSampler(problem(target)[1])) > 1


def test_the_elements_of_the_posterior_variance_stay_in_the_range_of_images() -> None:
    denoiser, head = problem("ocm")
    last = head.body[-1]
    assert isinstance(last, nn.Conv2d)
    x_t, q, one = normal(3, *SHAPE), posterior(SCHEDULE, 5, T), torch.ones(3, *SHAPE, dtype=torch.float64)
    for bias, clean in ((-5.0, 0.0), (1e6, 1.0)):
        with torch.no_grad():
            assert last.bias is not None
            last.bias.fill_(bias)
        covariance = LearnedDiagonalSampler(head).covariance(Reverse(denoiser, x_t, None, Step(5, T), q), lambda: one)
        torch.testing.assert_close(covariance.product(one), one * (q.variance + q.c0**2 * clean))


def test_a_head_draws_from_a_network_in_half_precision_within_its_bound() -> None:
    network = tiny_unet(num_class_embeds=None, sample_size=8).to(torch.bfloat16)
    denoiser, head = Denoiser(network, SCHEDULE), VarianceHead.on(network, 1)
    images = LearnedDiagonalSampler(head, 3).sample(denoiser, (1, 8, 8), num_images=2)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    x_t, q, one = normal(2, 1, 8, 8).float(), posterior(SCHEDULE, 5, T), torch.ones(2, 1, 8, 8)
    at = Reverse(denoiser, x_t, None, Step(5, T), q, largest=0.01)
    torch.testing.assert_close(LearnedDiagonalSampler(head).covariance(at, lambda: one).noise(lambda: one), 0.01 * one)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target='nll'; expected one of 'npr', 'sn', 'ocm'"):
        VarianceHead(4, 1, "nll")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layer='last' of UNet2DModel is NoneType; .* such as the last of .*conv_out"):
        VarianceHead.on(tiny_unet(), 1, layer="last")
    from safetensors.torch import save_file

    save_file({"gamma": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no variance head"):
        LearnedDiagonalSampler(str(tmp_path / "other.safetensors"))
