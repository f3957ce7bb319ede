"""Data on the device: the same batches, gathered where the steps are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cl_diffusion import ReplayDataModule, TaskDataModule
from cl_diffusion.data import ChangingDataModule, ClassBalancedBuffer, ReservoirBuffer
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.labelled import StoredImages
from cl_diffusion.data.mixed_replay import MixedReplay
from cl_diffusion.data.replay_order import JoinedImages

OPTIONS: dict[str, Any] = {"fraction": 0.2, "batch_size": 16}
STREAMS: dict[str, Any] = {
    "tasks": lambda **o: TaskDataModule(**o, **OPTIONS),
    "replay": lambda **o: ReplayDataModule(ClassBalancedBuffer(12), **o, **OPTIONS),
    "two pools": lambda **o: ReplayDataModule(
        MixedReplay([ClassBalancedBuffer(12), ReservoirBuffer(9)]), **o, **OPTIONS
    ),
    "changing": lambda **o: ChangingDataModule(**o, **OPTIONS),
}
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


def batches(name: str, device: str, resident: bool) -> list[Tensor]:
    """All tensors of an epoch of the third task, as the data module gives them."""
    data = STREAMS[name](resident=resident)
    data.trainer = SimpleNamespace(
        current_epoch=2,
        max_epochs=data.num_epochs,
        distributed_sampler_kwargs=None,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    loader = data.train_dataloader()
    found = [batch[0] if name in ("replay", "two pools") else batch for batch in iter(loader)]
    return [tensor for batch in found for part in batch for tensor in (part if isinstance(part, tuple) else (part,))]


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", STREAMS)
def test_resident_batches_are_the_same_bit_for_bit(name: str, device: str) -> None:
    there, here = batches(name, device, True), batches(name, device, False)
    assert len(there) >= 4
    for a, b in zip(there, here, strict=True):
        assert (a.device.type, b.device.type) == (device, "cpu")
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("name", STREAMS)
def test_resident_batches_come_from_the_device_and_nothing_else_does(name: str) -> None:
    there, here = batches(name, "meta", True), batches(name, "meta", False)
    assert {tensor.device.type for tensor in there} == {"meta"}
    assert {tensor.device.type for tensor in here} == {"cpu"}
    assert [(t.shape, t.dtype) for t in there] == [(t.shape, t.dtype) for t in here]


def test_what_is_held_in_memory_is_copied_once_and_uint8() -> None:
    stored = StoredImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5), 5, ImageFormat())
    there = stored.on(torch.device("meta"))
    assert there._pixels.dtype == torch.uint8
    assert stored.on(torch.device("meta")) is there
    assert stored.on(torch.device("cpu")) is stored
    assert len(there.images([0, 4])) == 2


def test_joined_images_are_in_the_order_that_is_asked_for() -> None:
    pixels = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    parts = [StoredImages(pixels[a:b], torch.zeros(b - a), 1, ImageFormat()) for a, b in ((0, 3), (3, 4), (4, 7))]
    whole = StoredImages(pixels, torch.zeros(7), 1, ImageFormat())
    for indices in ([6, 0, 3, 3, 2, 5], [1], [4, 6]):
        assert torch.equal(JoinedImages(parts).images(indices), whole.images(indices))


def test_every_value_of_a_byte_is_what_the_host_makes_of_it() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    images = StoredImages(pixels, torch.zeros(256), 1, ImageFormat()).images(range(256))
    assert torch.equal(images.flatten(), torch.arange(256).float() / 127.5 - 1)


def test_workers_and_residence_are_refused_together() -> None:
    with pytest.raises(ValueError, match="resident=True with num_workers=2: batches are gathered in place; set 0"):
        TaskDataModule(resident=True, num_workers=2)
