"""One data set, changed in every task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_diffusion.data import ChangingDataModule, SparseVectors
from cl_diffusion.modules.perceptron import Perceptron
from cl_diffusion.stream import TaskStream


def stream(**options: Any) -> ChangingDataModule:
    data = ChangingDataModule(**{"num_tasks": 3, "batch_size": 50, **options})
    data.setup("fit")
    return data


def whole(data: ChangingDataModule, task: int) -> tuple[Tensor, Tensor]:
    """The task's samples in the order of the data set."""
    parts = [batch.batch for batch in data.reference_dataloader(task)]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_pixels_are_permuted_alike_in_all_images_and_otherwise_in_each_task() -> None:
    data = stream(change="pixels")
    assert isinstance(data, TaskStream)
    (first, labels), (second, same) = whole(data, 0), whole(data, 1)
    assert torch.equal(labels, same)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.flatten(1).sort().values, second.flatten(1).sort().values)
    columns = first.flatten(1).T
    assert all(any(torch.equal(column, other) for other in columns) for column in second.flatten(1).T)
    assert torch.equal(whole(data, 1)[0], second)
    held_out = torch.cat([batch.batch[0] for batch in data.evaluation_dataloader(1)])
    again = torch.cat([batch.batch[0] for batch in stream(change="pixels").evaluation_dataloader(1)])
    assert torch.equal(held_out, again)


def test_classes_are_renamed_and_images_stay() -> None:
    data = stream(change="labels")
    (first, labels), (second, others) = whole(data, 0), whole(data, 1)
    assert torch.equal(first, second)
    names = {(int(a), int(b)) for a, b in zip(labels, others, strict=True)}
    assert len(names) == 10
    assert not torch.equal(labels, others)


def test_random_labels_belong_to_an_image_for_the_length_of_a_task() -> None:
    data = stream(change="random_labels", dataset=SparseVectors(samples=100), holdout=0.1, epochs_per_task=4)
    (first, labels), (second, others) = whole(data, 0), whole(data, 1)
    assert torch.equal(first, second)
    assert 0.02 < float((labels == others).double().mean()) < 0.25
    trained = [
        {
            tuple(image.flatten().tolist()): int(label)
            for images, ys in data.training_loader(0, epoch)
            for image, label in zip(images, ys, strict=True)
        }
        for epoch in (0, 3)
    ]
    assert trained[0] == trained[1]
    assert data.num_epochs == 12
    assert [data.task_at(epoch) for epoch in (0, 3, 4, 11, 12)] == [0, 0, 1, 2, 3]


def test_a_task_has_images_of_its_own_unless_they_are_to_be_relearned() -> None:
    few = {"images_per_task": 40}
    pixels, relabelled = stream(change="pixels", **few), stream(change="random_labels", **few)
    indices = [
        [batch.indices for batch in data.reference_dataloader(task)] for data in (pixels, relabelled) for task in (0, 1)
    ]
    sets = [set(torch.cat(of).tolist()) for of in indices]
    assert [len(of) for of in sets] == [40] * 4
    assert sets[0] != sets[1]
    assert sets[2] == sets[3]


def test_sparse_vectors_are_as_sparse_as_they_are_said_to_be() -> None:
    data = SparseVectors(samples=400, density=0.4)
    images = torch.stack([data[i][0] for i in range(len(data))])
    assert float((images > 0).double().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(images.max()) <= 1
    assert float(images[images > 0].mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": "colours"}, "change='colours'"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"images_per_task": 0}, "images_per_task=0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChangingDataModule(**options)


@pytest.mark.parametrize("other", [{"change": "labels"}, {"num_tasks": 4}, {"seed": 1}])
def test_a_checkpoint_of_another_change_is_refused(other: dict[str, Any]) -> None:
    state = ChangingDataModule("pixels", num_tasks=3).state_dict()
    ChangingDataModule("pixels", num_tasks=3).load_state_dict(state)
    with pytest.raises(ValueError, match="but the checkpoint is of a stream with"):
        ChangingDataModule(**{"change": "pixels", "num_tasks": 3, **other}).load_state_dict(state)


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="images_per_task=10000: there are"):
        ChangingDataModule(images_per_task=10_000).training_loader(0, 0)
    with pytest.raises(ValueError, match="num_tasks=2.5"):
        ChangingDataModule(num_tasks=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="density=2"):
        SparseVectors(density=2)
    with pytest.raises(ValueError, match="activation='tanh'; expected 'relu' or 'crelu'"):
        Perceptron(2, 2, activation="tanh")  # type: ignore[arg-type]
