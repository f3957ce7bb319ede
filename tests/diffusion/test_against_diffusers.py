"""The schedules and samplers of diffusers as an oracle, given our exact ``abar``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from cl_diffusion.diffusion import Denoiser, NoiseSchedule, Prediction
from cl_diffusion.diffusion.samplers import AncestralSampler, DDIMSampler
from cl_diffusion.diffusion.samplers.sampler import Step
from tests.diffusion.networks import Wave

SCHEDULE = NoiseSchedule.linear(60)
NAMES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def oracle(kind: type, prediction: Prediction, **options: Any) -> Any:
    scheduler = kind(num_train_timesteps=60, prediction_type=NAMES[prediction], **options)
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_named_schedules(ours: str, theirs: str) -> None:
    expected = DDPMScheduler(1000, beta_schedule=theirs).alphas_cumprod
    abar = getattr(NoiseSchedule, ours)(1000).alpha_bar
    torch.testing.assert_close(abar.float(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("timesteps", [None, [59, 39, 20, 0]])
def test_ancestral_chain(prediction: Prediction, variance: Any, clip: bool, timesteps: list[int] | None) -> None:
    scheduler = oracle(DDPMScheduler, prediction, variance_type=f"fixed_{variance}", clip_sample=clip)
    scheduler.set_timesteps(60) if timesteps is None else scheduler.set_timesteps(timesteps=timesteps)
    denoiser, generator = Denoiser(Wave(), SCHEDULE, prediction).eval(), seeded()
    x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(denoiser(x, t.expand(2)), t, x, generator=generator).prev_sample
    sampler = AncestralSampler(len(scheduler.timesteps), variance, clip)
    images = sampler.sample(denoiser, (1, 4, 4), num_images=2, generator=seeded())
    torch.testing.assert_close(images, x.clamp(-1, 1) if clip else x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_ddim_step(prediction: Prediction, eta: float, clip: bool) -> None:
    scheduler = oracle(DDIMScheduler, prediction, clip_sample=clip)
    scheduler.set_timesteps(10)
    denoiser, sampler = Denoiser(Wave(), SCHEDULE, prediction).eval(), DDIMSampler(10, eta, clip)
    x, z = torch.randn(2, 2, 1, 4, 4, generator=seeded(), dtype=torch.float64).unbind(0)

    def normal() -> Tensor:
        return z

    with torch.no_grad():
        for t in scheduler.timesteps:
            step, output = Step(s=max(int(t) - 6, -1), t=int(t)), denoiser(x, t.expand(2))
            expected = scheduler.step(output, t, x, eta, use_clipped_model_output=clip, variance_noise=z).prev_sample
            torch.testing.assert_close(sampler.step(denoiser, x, None, step, normal), expected, rtol=1e-8, atol=1e-8)
