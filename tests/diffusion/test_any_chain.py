"""Whatever a chain is asked for, it gives finite images of that number or one clear error."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cl_diffusion.diffusion import Denoiser, NoiseSchedule
from cl_diffusion.diffusion.samplers import (
    AncestralSampler,
    DDIMSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    Sampler,
)
from tests.outcome import outcome
from tests.tiny import unet

SAMPLERS: dict[str, Sampler] = {
    "ancestral": AncestralSampler(steps=2),
    "DDIM": DDIMSampler(steps=2),
    "Hutchinson": HutchinsonSampler(steps=2, probes=1),
    "Lanczos": LanczosGaussianSampler(steps=2, lanczos_steps=1),
}
LABELS = st.none() | st.lists(st.integers(-1, 11), max_size=4)


@cache
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(unet(), NoiseSchedule.linear(10))


def drawn(sampler: Sampler, shape: Any, labels: Tensor | None, num_images: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sampler.sample(denoiser(), shape, labels, num_images=num_images, generator=generator)


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(LABELS, st.none() | st.integers(-1, 3), st.sampled_from([(1, 8, 8), (1, 7, 8), (3, 8, 8), (1, 8)]))
@example([0], None, (1, 8, 8))
@example([], None, (1, 8, 8))
@example([10], None, (1, 8, 8))
@example([0, 1], 3, (1, 8, 8))
@example(None, 2, (1, 8, 8))
def test_images_are_drawn_or_refused(sampler: str, labels: Any, num_images: int | None, shape: Any) -> None:
    wanted = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    images = outcome(lambda: drawn(SAMPLERS[sampler], shape, wanted, num_images), "label|num_images|images|shape")
    right = bool(labels) and all(0 <= label < 10 for label in labels) and num_images in (None, len(labels))
    assert (images is not None) == (right and shape == (1, 8, 8))
    if images is not None:
        assert images.shape == (len(labels), *shape)
        assert bool(images.isfinite().all())
        assert float(images.abs().max()) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_network_that_has_diverged_is_said_to(sampler: str, value: float) -> None:
    class Diverged(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return x_t * value

    broken = Denoiser(Diverged(), NoiseSchedule.linear(10))
    images = outcome(lambda: SAMPLERS[sampler].sample(broken, (1, 2, 2), num_images=2), "not finite.*check the weights")
    assert images is None or float(images.abs().max()) <= 1
