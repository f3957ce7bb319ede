from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from cl_diffusion.data import TaskDataModule
from cl_diffusion.stream import TaskStream


def at(data: TaskDataModule, epoch: int = 0, replicas: int = 1, rank: int = 0, fn: str = "fit") -> TaskDataModule:
    """The data module as a Trainer of this epoch and process would use it."""
    data.trainer = SimpleNamespace(
        current_epoch=epoch,
        max_epochs=data.num_epochs,
        distributed_sampler_kwargs={"num_replicas": replicas, "rank": rank},
        state=SimpleNamespace(fn=TrainerFn(fn)),
    )
    return data


@pytest.fixture
def stream(numbered: Any) -> TaskDataModule:
    """Three tasks of two classes: 8 training and 2 held-out samples a class."""
    return TaskDataModule(numbered(), epochs_per_task=[1, 2, 1], batch_size=5)


def test_it_is_a_task_stream(stream: TaskDataModule) -> None:
    assert isinstance(stream, TaskStream)
    assert (stream.num_tasks, stream.num_epochs, stream.num_classes) == (3, 4, 6)
    assert [stream.task_at(epoch) for epoch in range(6)] == [0, 1, 1, 2, 3, 3]
    assert [stream.task_classes(task) for task in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert stream.image_shape == (1, 2, 2)


def test_an_epoch_visits_every_training_sample_of_its_task_once(stream: TaskDataModule, read_numbers: Any) -> None:
    for epoch in range(stream.num_epochs):
        task = stream.task_at(epoch)
        batches = list(at(stream, epoch).train_dataloader())
        assert [len(labels) for _, labels in batches] == [5, 5, 5, 1]
        assert {labels.dtype for _, labels in batches} == {torch.int64}
        visited = [number for images, _ in batches for number in read_numbers(images)]
        labels = [label for _, labels in batches for label in labels.tolist()]
        assert sorted(visited) == stream.scenario.training_indices(task).tolist()
        assert labels == [number % 6 for number in visited]
        assert set(labels) == set(stream.task_classes(task))


def test_training_and_held_out_samples_are_disjoint_and_are_all(stream: TaskDataModule) -> None:
    training = [i for task in range(3) for batch in stream.importance_dataloader(task) for i in batch.indices.tolist()]
    held_out = [i for task in range(3) for batch in stream.evaluation_dataloader(task) for i in batch.indices.tolist()]
    assert sorted(training + held_out) == list(range(60))
    assert len(held_out) == 12


def test_keyed_batches_name_their_samples(stream: TaskDataModule, read_numbers: Any) -> None:
    for loader in (stream.importance_dataloader(1), stream.evaluation_dataloader(1)):
        for batch in loader:
            images, labels = batch.batch
            assert read_numbers(images) == batch.indices.tolist()
            assert labels.tolist() == [index % 6 for index in batch.indices.tolist()]
        assert [batch.indices.tolist() for batch in loader] == [batch.indices.tolist() for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_that_of_seed_and_epoch_and_leaves_the_global_state_alone(
    numbered: Any, read_numbers: Any, num_workers: int
) -> None:
    if num_workers and multiprocessing.get_start_method() != "fork":
        pytest.skip("needs fork: the data set is defined in a conftest")

    def order(epoch: int, seed: int = 0, num_workers: int = 0) -> list[int]:
        data = at(TaskDataModule(numbered(), epochs_per_task=4, seed=seed, num_workers=num_workers), epoch)
        return [number for images, _ in data.train_dataloader() for number in read_numbers(images)]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = order(0, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert order(0) == first
    assert sorted(order(1)) == sorted(first)
    assert order(1) != first
    assert order(0, seed=1) != first


def test_every_loader_leaves_the_global_state_alone(stream: TaskDataModule) -> None:
    before = torch.get_rng_state()
    for loader in (stream.importance_dataloader(0), *stream.val_dataloader(), stream.predict_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_the_importance_shares_of_all_processes_partition_the_task(stream: TaskDataModule, replicas: int) -> None:
    shares = [
        [i for batch in at(stream, 1, replicas, rank).importance_dataloader() for i in batch.indices.tolist()]
        for rank in range(replicas)
    ]
    assert sorted(i for share in shares for i in share) == stream.scenario.training_indices(1).tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_importance_samples_are_limited_alike_on_all_processes(numbered: Any) -> None:
    data = TaskDataModule(numbered(), importance_samples=7)
    shares = [
        [i for batch in at(data, 0, 2, rank).importance_dataloader(2) for i in batch.indices.tolist()]
        for rank in (0, 1)
    ]
    chosen = sorted(shares[0] + shares[1])
    assert len(set(chosen)) == 7
    assert set(chosen) < set(data.scenario.training_indices(2).tolist())
    assert chosen == data.scenario.importance_indices(2, 7).tolist()


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_process_trains_on_as_many_samples_and_together_on_all(
    stream: TaskDataModule, read_numbers: Any, replicas: int
) -> None:
    shares = [
        [i for images, _ in at(stream, 0, replicas, rank).train_dataloader() for i in read_numbers(images)]
        for rank in range(replicas)
    ]
    assert {len(share) for share in shares} == {-(-16 // replicas)}
    assert {i for share in shares for i in share} == set(stream.scenario.training_indices(0).tolist())


def test_evaluation_and_reference_are_whole_on_every_process(numbered: Any) -> None:
    data = at(TaskDataModule(numbered(), importance_samples=3), 0, 2, 1)
    for loader, expected in (
        (data.evaluation_dataloader(1), data.scenario.held_out_indices(1)),
        (data.reference_dataloader(1), data.scenario.training_indices(1)),
    ):
        assert torch.cat([batch.indices for batch in loader]).equal(expected)


def test_validation_covers_the_tasks_so_far_while_fitting_and_all_of_them_otherwise(stream: TaskDataModule) -> None:
    assert [len(at(stream, epoch).val_dataloader()) for epoch in range(5)] == [1, 2, 2, 3, 3]
    assert len(at(stream, 0, fn="validate").val_dataloader()) == 3
    assert len(at(stream, 0, fn="test").test_dataloader()) == 3
    for task, loader in enumerate(stream.test_dataloader()):
        labels = torch.cat([batch.batch[1] for batch in loader])
        assert labels.unique().tolist() == stream.task_classes(task)


def test_joint_trains_every_epoch_on_all_tasks_and_evaluates_each(numbered: Any) -> None:
    joint = TaskDataModule(numbered(), joint=True, epochs_per_task=2)
    separate = TaskDataModule(numbered(), epochs_per_task=2)
    everything = sorted(i for task in range(3) for i in separate.scenario.training_indices(task).tolist())
    assert (joint.num_epochs, separate.num_epochs) == (2, 6)
    assert [joint.task_at(epoch) for epoch in range(3)] == [2, 2, 3]
    for epoch in (0, 1):
        labels = torch.cat([labels for _, labels in at(joint, epoch).train_dataloader()])
        assert labels.bincount().tolist() == [8] * 6
        assert sorted(i for batch in joint.importance_dataloader() for i in batch.indices.tolist()) == everything
    assert joint.scenario.training_indices(0).tolist() == separate.scenario.training_indices(0).tolist()
    assert [batch.indices.tolist() for batch in joint.evaluation_dataloader(1)] == [
        batch.indices.tolist() for batch in separate.evaluation_dataloader(1)
    ]


def test_predict_serves_labels_to_draw(numbered: Any) -> None:
    data = TaskDataModule(numbered(), classes=[3, 1], images_per_class=3, batch_size=4)
    assert [batch.tolist() for batch in data.predict_dataloader()] == [[1, 1, 1, 3], [3, 3]]
    data = TaskDataModule(numbered(), predict_classes=[5, 0], images_per_class=1)
    (labels,) = data.predict_dataloader()
    assert labels.tolist() == [5, 0]
    assert labels.dtype == torch.int64


def test_some_classes_in_chosen_tasks(mnist_root: Path) -> None:
    data = TaskDataModule("mnist", str(mnist_root), classes=[0, 1, 2, 3], image_size=8)
    assert [data.task_classes(task) for task in range(data.num_tasks)] == [[0, 1], [2, 3]]
    assert data.num_classes == 10
    assert data.image_shape == (1, 8, 8)
    ((images, labels),) = at(data, 1).train_dataloader()
    assert images.shape == (6, 1, 8, 8)
    assert sorted(labels.tolist()) == [2, 2, 2, 3, 3, 3]
    (batch,) = data.evaluation_dataloader(1)
    assert batch.indices.tolist() == [2, 3, 12, 13]


def test_a_fraction_keeps_the_proportions(numbered: Any) -> None:
    data = TaskDataModule(numbered(), fraction=0.5)
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert labels.bincount().tolist() == [4, 4]


@pytest.mark.parametrize("joint", [False, True])
def test_the_training_samples_of_a_task_are_limited_everywhere(numbered: Any, joint: bool) -> None:
    data = TaskDataModule(numbered(), classes_per_task=1, training_samples=3, joint=joint)
    expected = 3 * (data.num_tasks if joint else 1)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == expected
    assert sum(len(batch.indices) for batch in data.importance_dataloader()) == expected
    assert sum(len(batch.indices) for batch in data.reference_dataloader(0)) == 3
    with pytest.raises(ValueError, match="training_samples=0: expected at least 1"):
        TaskDataModule(numbered(), training_samples=0)


def test_shape_and_classes_are_announced_without_reading_the_data(tmp_path: Path) -> None:
    data = TaskDataModule("cifar10", str(tmp_path), channels=1, image_size=16, epochs_per_task=[1, 2, 3, 4, 5])
    assert (data.num_tasks, data.num_epochs, data.num_classes, data.image_shape) == (5, 15, 10, (1, 16, 16))
    with pytest.raises(ValueError, match=rf"root='{tmp_path}'"):
        data.setup("fit")


def test_an_image_folder_is_a_stream(tmp_path: Path, image_folder: Any) -> None:
    image_folder(tmp_path, ["ant", "bee", "cat", "dog"])
    data = TaskDataModule("image_folder", str(tmp_path), image_size=8, batch_size=3)
    data.setup("fit")
    assert (data.num_tasks, data.num_classes, data.image_shape) == (2, 4, (3, 8, 8))
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert images.shape == (8, 3, 8, 8)
    assert images.min() >= -1
    assert images.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0: expected a whole number, at least 1"),
        ({"images_per_class": 0}, r"images_per_class=0: expected"),
        ({"importance_samples": 0}, r"importance_samples=0: expected"),
        ({"holdout": 1.0}, r"holdout=1.0: expected more than 0 and less than 1"),
        ({"fraction": 0.0}, r"fraction=0.0: expected more than 0 and at most 1"),
        ({"predict_classes": [10]}, r"predict_classes names \[10\]: expected classes from 0 to 9"),
        ({"epochs_per_task": [1, 1]}, r"epochs_per_task=\[1, 1\]: expected one entry for each of 5 tasks"),
        ({"classes_per_task": 4}, r"classes_per_task=4 does not divide"),
        ({"tasks": [[0]], "classes_per_task": 1}, r"are both given"),
        ({"dataset": "image_folder"}, r"image_size=None: .*Set image_size"),
        ({"dataset": "mnits"}, r"dataset='mnits': expected one of"),
    ],
)
def test_arguments_are_checked_without_data(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskDataModule(**arguments)


def test_what_only_the_data_can_tell_is_checked_in_setup(numbered: Any) -> None:
    data = TaskDataModule(numbered(num_classes=3))
    with pytest.raises(ValueError, match=r"classes_per_task=2 \(the default\) does not divide the 3 classes"):
        data.setup("fit")


def test_a_checkpoint_of_another_stream_is_refused(numbered: Any) -> None:
    data = TaskDataModule(classes=[0, 1, 2, 3])
    data.load_state_dict(TaskDataModule(classes=[3, 2, 1, 0]).state_dict())
    others = {
        r"tasks=\[\[0, 1\], \[2, 3\]\], but the checkpoint .* tasks=\[\[0\], \[1\], \[2\], \[3\]\]": TaskDataModule(
            classes=[0, 1, 2, 3], classes_per_task=1
        ),
        r"dataset='digits', but the checkpoint .* dataset='.*Numbered'": TaskDataModule(numbered()),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            data.load_state_dict(other.state_dict())
