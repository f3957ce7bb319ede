"""Whatever a batch holds, a training step gives a finite loss or one clear error."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_diffusion import DDPM, DistilledDDPM
from cl_diffusion.diffusion.image_batch import require_values
from cl_diffusion.stream import ReplayBatch
from tests.outcome import outcome
from tests.tiny import unet

OF_THE_BATCH = r"image|label|batch"
TYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool]
SHAPES = [(1, 8, 8), (1, 8, 8), (1, 16, 8), (1, 7, 7), (3, 8, 8), (8, 8), (64,), (1, 0, 8), (0, 8, 8)]
VALUES = [math.nan, math.inf, -math.inf, 255.0, 1e30, -1.0, 0.0, 1.0, 9.0]


@cache
def ddpm() -> DDPM:
    return quiet(DDPM(unet()))


@cache
def distilled() -> DistilledDDPM:
    module = quiet(DistilledDDPM(unet()))
    module.freeze_teacher()
    return module


def quiet(module: Any) -> Any:
    module.log = lambda *_, **__: None
    return module


@st.composite
def labels_of_any_kind(draw: st.DrawFn, samples: int) -> Any:
    kind = draw(st.sampled_from(["right", "right", "range", "type", "length", "none", "shape", "list"]))
    labels = torch.arange(samples) % 4
    if kind == "range":
        return labels + draw(st.sampled_from([-5, 7, 100]))
    if kind == "type":
        return labels.to(draw(st.sampled_from([torch.float32, torch.int32, torch.uint8])))
    if kind == "length":
        return labels[: draw(st.integers(0, samples))]
    if kind == "shape":
        return labels[:, None]
    return {"none": None, "list": labels.tolist()}.get(kind, labels)


@st.composite
def batch_of_any_kind(draw: st.DrawFn) -> tuple[Any, Any]:
    samples = draw(st.integers(0, 5))
    images = torch.rand(samples, *draw(st.sampled_from(SHAPES))) * 2 - 1
    if draw(st.booleans()):
        images = torch.full_like(images, draw(st.sampled_from(VALUES[-4:])))
    return images.to(draw(st.sampled_from(TYPES))), draw(labels_of_any_kind(samples))


RIGHT = torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch_of_any_kind())
@example(RIGHT)
@example((RIGHT[0][:1], RIGHT[1][:1]))
@example((RIGHT[0][:0], RIGHT[1][:0]))
@example((RIGHT[0].double(), RIGHT[1]))
@example((RIGHT[0].byte(), RIGHT[1]))
@example((RIGHT[0][..., :7], RIGHT[1]))
@example((RIGHT[0], RIGHT[1] + 100))
@example((RIGHT[0], RIGHT[1].float()))
@example((RIGHT[0], RIGHT[1][:1]))  # would be broadcast to all
@example(({"image": RIGHT[0]}, RIGHT[1]))
def test_a_step_has_a_finite_loss_or_is_refused(batch: tuple[Any, Any]) -> None:
    loss = outcome(lambda: ddpm().training_step(batch, 0), OF_THE_BATCH)
    assert loss is not None or batch is not RIGHT
    assert loss is None or (loss.shape == () and math.isfinite(loss))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch_of_any_kind(), batch_of_any_kind())
@example(RIGHT, RIGHT)
@example(RIGHT, (RIGHT[0][:1], RIGHT[1][:1]))
def test_a_step_with_replay_has_a_finite_loss_or_is_refused(current: Any, replay: Any) -> None:
    module = distilled()
    loss = outcome(lambda: module.training_step(ReplayBatch(current, replay), 0), OF_THE_BATCH)
    assert loss is not None or current is not RIGHT or replay is not RIGHT
    assert loss is None or (loss.shape == () and math.isfinite(loss))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch_of_any_kind(), st.sampled_from(VALUES), st.booleans())
@example(RIGHT, math.nan, True)
@example(RIGHT, 255.0, True)
@example((RIGHT[0], RIGHT[1] + 8), 0.0, False)
def test_what_is_let_through_can_be_stepped_on(batch: tuple[Any, Any], value: float, spoilt: bool) -> None:
    """The look at the values of a fit's first batch leaves nothing that gives a loss which is not finite."""
    images, labels = batch
    if spoilt and isinstance(images, Tensor) and images.is_floating_point() and images.numel():
        images = images.clone()
        images.view(-1)[0] = value

    def step() -> Tensor:
        module = ddpm()
        module._looked = False  # a new fit
        module.on_train_batch_start((images, labels), 0)
        return module.training_step((images, labels), 0)

    loss = outcome(step, OF_THE_BATCH)
    assert loss is None or math.isfinite(loss)
    if spoilt and value in (255.0, 1e30):
        assert loss is None or not (images == value).any()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.full((2, 1, 4, 4), math.nan), "2 of the 2"),
        (torch.full((2, 1, 4, 4), 255.0), r"\[255, 255\]"),
        (torch.full((2, 1, 4, 4), -110.0), "scale them"),
    ],
)
def test_values_that_are_no_images_are_named(images: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_values(images)


def test_latents_beyond_one_are_let_through() -> None:
    require_values(torch.randn(64, 4, 8, 8) * 1.5)
