from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cl_diffusion.diffusion import Denoiser, NoiseSchedule
from cl_diffusion.diffusion.samplers import AncestralSampler, DDIMSampler, Sampler
from cl_diffusion.diffusion.samplers.sampler import Step
from cl_diffusion.diffusion.samplers.trajectory import trajectory
from tests.diffusion.networks import Wave, gaussian_denoiser, tiny_unet

SCHEDULE = NoiseSchedule.cosine(60)
SAMPLERS = [AncestralSampler(), AncestralSampler(7, "large"), DDIMSampler(7), DDIMSampler(7, eta=0.5)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_a_trajectory_descends_evenly_from_the_first_to_the_last(sizes: tuple[int, int]) -> None:
    total, steps = sizes
    visited = trajectory(total, steps)
    assert len(visited) == steps
    assert visited[0] == total - 1
    if steps > 1:
        assert visited[-1] == 0
        gaps = [a - b for a, b in pairwise(visited)]
        assert min(gaps) >= 1
        assert all(abs(gap - (total - 1) / (steps - 1)) <= 1 for gap in gaps)


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_a_trajectory_has_at_most_the_steps_of_the_schedule(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps={steps}: expected 1..10"):
        trajectory(10, steps)


@pytest.mark.parametrize(("total", "steps"), [(1000, 50), (1000, 10), (40, 40), (40, 39), (10, 2), (10, 1)])
def test_quadratic_spacing_crowds_at_little_noise(total: int, steps: int) -> None:
    visited = trajectory(total, steps, "quadratic")
    gaps = [a - b for a, b in pairwise(visited)]
    assert visited[0] == total - 1
    assert len(visited) == steps
    assert all(gap >= 1 for gap in gaps)
    if steps > 1:
        assert visited[-1] == 0
        assert gaps[0] >= gaps[-1]
    if (total, steps) == (1000, 10):
        assert visited == [999, 789, 604, 444, 308, 197, 111, 49, 12, 0]


def test_a_list_of_timesteps_is_taken_as_it_is() -> None:
    assert trajectory(10, [3, 9, 5]) == [9, 5, 3]
    for wrong in ([], [3, 3], [10, 2], [-1, 2]):
        with pytest.raises(ValueError, match="steps=.*each once, from 0 to 9"):
            trajectory(10, wrong)
    with pytest.raises(ValueError, match="spacing='cubic'"):
        trajectory(10, 3, "cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1, 9, 60])
def test_ddim_with_eta_one_is_ancestral_sampling_with_the_small_variance(steps: int, clip: bool) -> None:
    denoiser = Denoiser(Wave(), SCHEDULE)
    ancestral, ddim = AncestralSampler(steps, "small", clip), DDIMSampler(steps, 1.0, clip)
    a, b = (s.sample(denoiser, (1, 4, 4), num_images=3, generator=seeded()) for s in (ancestral, ddim))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_depend_on_the_generator_alone(sampler: Sampler) -> None:
    denoiser, labels = Denoiser(Wave(), SCHEDULE), torch.tensor([2, 0])
    state = torch.get_rng_state()
    first = sampler.sample(denoiser, (1, 8, 8), labels, generator=seeded())
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    assert sampler.sample(denoiser, (1, 8, 8), labels, generator=seeded()).equal(first)
    assert not sampler.sample(denoiser, (1, 8, 8), labels, generator=seeded(1)).equal(first)
    assert not sampler.sample(denoiser, (1, 8, 8), labels.flip(0), generator=seeded()).equal(first)
    assert first.shape == (2, 1, 8, 8)
    assert not first.requires_grad
    assert not first.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_on_the_cpu_gives_the_same_images_on_the_gpu(sampler: Sampler) -> None:
    on_cpu = sampler.sample(Denoiser(Wave(), SCHEDULE), (1, 8, 8), num_images=2, generator=seeded())
    on_gpu = sampler.sample(Denoiser(Wave(), SCHEDULE).cuda(), (1, 8, 8), num_images=2, generator=seeded())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clip_bounds_the_images(sampler: Sampler) -> None:
    denoiser = gaussian_denoiser(SCHEDULE, std=3.0)
    images = sampler.sample(denoiser, (1, 8, 8), num_images=2, generator=seeded())
    assert images.abs().max() == 1
    loose = type(sampler)(sampler.steps, clip=False)
    assert loose.sample(denoiser, (1, 8, 8), num_images=2, generator=seeded()).abs().max() > 2


class Ascent(Sampler):
    """Follows the gradient of the network's summed output, far out of [-1, 1]."""

    steps, clip = 3, True

    def step(self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: object) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            t = torch.full((len(x),), step.t)
            return x_t + 100 * torch.autograd.grad(denoiser(x, t, labels).sum(), x)[0]


def test_a_step_may_switch_gradients_on_and_need_not_clip() -> None:
    images = Ascent().sample(Denoiser(Wave(), SCHEDULE), (1, 4, 4), num_images=2, generator=seeded())
    assert images.abs().max() == 1


class Interrupted(Exception):
    pass


def test_training_flags_come_back_one_by_one_also_after_an_error() -> None:
    denoiser = Denoiser(Wave(), SCHEDULE).train()
    denoiser.network.eval()
    seen: list[tuple[bool, bool]] = []

    def watched(steps: Iterable[object]) -> Iterable[object]:
        for step in steps:
            seen.append((denoiser.training, denoiser.network.dropout.training))
            yield step
            if len(seen) == 3:
                raise Interrupted

    denoiser.network.dropout.train()
    with pytest.raises(Interrupted):
        AncestralSampler().sample(denoiser, (1, 4, 4), num_images=1, progress=watched)
    assert seen == [(False, False)] * 3
    assert (denoiser.training, denoiser.network.training, denoiser.network.dropout.training) == (True, False, True)


def test_progress_is_given_every_step_down_to_the_clean_image() -> None:
    steps: list[tuple[int, int]] = []

    def watched(pairs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        steps.extend(pairs)
        return steps

    DDIMSampler(3).sample(Denoiser(Wave(), SCHEDULE), (1, 4, 4), num_images=1, progress=watched)
    assert steps == [(30, 59), (0, 30), (-1, 0)]


def test_values_that_are_not_finite_are_refused_with_the_timestep() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return torch.where((t == 30).reshape(-1, 1, 1, 1), torch.nan, x)

    with pytest.raises(ValueError, match=r"the step from t=30 to 0 .*not finite"):
        DDIMSampler(3).sample(Denoiser(Broken(), SCHEDULE), (1, 4, 4), num_images=1)


def test_a_half_precision_network_runs_a_float32_chain() -> None:
    denoiser = Denoiser(tiny_unet(num_class_embeds=None).to(torch.bfloat16), SCHEDULE)
    images = DDIMSampler(4).sample(denoiser, (1, 8, 8), num_images=1, generator=seeded())
    assert images.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "num_images", "message"),
    [
        (None, None, "give labels, or the number of images"),
        (None, 0, "num_images=0"),
        (torch.tensor([0, 1]), 3, "num_images left out"),
        (torch.zeros(0, dtype=torch.int64), None, r"shape \(0,\)"),
        (torch.zeros(1, 2, dtype=torch.int64), None, r"shape \(1, 2\)"),
        (torch.tensor([0, 3]), None, "labels run from 0 to 3.*num_classes=3"),
        (torch.tensor([-1, 2]), None, "labels run from -1 to 2"),
    ],
)
def test_labels_and_number_of_images_must_agree(labels: Tensor | None, num_images: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDIMSampler(2).sample(Denoiser(tiny_unet(), SCHEDULE), (1, 8, 8), labels, num_images=num_images)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="eta=1.5"):
        DDIMSampler(eta=1.5)
    with pytest.raises(ValueError, match="variance='learned'"):
        AncestralSampler(variance="learned")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps=61"):
        DDIMSampler(61).sample(Denoiser(Wave(), SCHEDULE), (1, 4, 4), num_images=1)
