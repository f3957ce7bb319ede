"""Whatever a stream of tasks is asked for, it serves every epoch of it or refuses the argument by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import Dataset

from cl_diffusion.data import (
    ClassBalancedBuffer,
    MixedReplay,
    ReplayDataModule,
    ReplaySource,
    ReservoirBuffer,
    TaskDataModule,
)
from tests.outcome import outcome

NOT_FINITE = [math.nan, math.inf, -math.inf]
NUMBERS = st.one_of(st.integers(-2, 40), st.floats(-0.5, 1.5), st.sampled_from([*NOT_FINITE, 10**9]))
CLASSES = st.integers(-1, 10)
DIGITS: dict[str, Any] = {"tasks": [[0, 1], [2, 3]], "classes": [0, 1, 2, 3], "fraction": 0.1}


def served(module: TaskDataModule) -> TaskDataModule:
    """The stream, of which the first and last epoch of each task were looked at."""
    module.setup("validate")
    assert sum(module.schedule.epochs) == module.num_epochs or module.scenario.joint
    for task in range(module.num_tasks):
        seen = 0
        loader = module.training_loader(task, task)
        for batch in loader:
            images, labels = whole(batch[0] if isinstance(loader, CombinedLoader) else batch, module)
            assert len(images) == len(labels)
            seen += len(labels)
        assert seen > 0
    return module


def whole(batch: Any, module: TaskDataModule) -> tuple[Tensor, Tensor]:
    parts = [batch.current, batch.replay] if hasattr(batch, "replay") else [batch]
    for images, labels in parts:
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (len(labels), *module.image_shape)
        assert len(images) > 0
        assert bool(images.isfinite().all())
        assert -1 <= float(images.min()) <= float(images.max()) <= 1
        assert int(labels.min()) >= 0
    return parts[0]


def stream(**changes: Any) -> Callable[[], TaskDataModule]:
    return lambda: served(TaskDataModule(**{**DIGITS, **changes}))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.none() | st.lists(st.lists(CLASSES, max_size=3), max_size=4),
    st.none() | st.lists(CLASSES, max_size=6),
    st.none() | st.integers(-1, 6),
    st.sampled_from([None, "shuffled"]) | st.lists(CLASSES, max_size=4),
)
@example([[0, 1], []], None, None, None)
@example([[0], [0]], None, None, None)
@example(None, [3, 1, 2], 2, None)
@example(None, [3, 1, 2, 5], 2, [5, 3, 2, 1])
def test_classes_are_dealt_out_or_refused(tasks: Any, classes: Any, classes_per_task: Any, class_order: Any) -> None:
    made = stream(tasks=tasks, classes=classes, classes_per_task=classes_per_task, class_order=class_order)
    found = outcome(made, "tasks|class")
    if found is not None:
        dealt = [label for task in range(found.num_tasks) for label in found.task_classes(task)]
        assert len(set(dealt)) == len(dealt)
        assert set(dealt) == set(classes if classes is not None else dealt)


@pytest.mark.parametrize("argument", ["fraction", "holdout", "epochs_per_task", "training_samples", "classes_per_task"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(NUMBERS)
@example(math.nan)
@example(math.inf)
@example(1e-9)
@example(2.5)
@example(0)
@example(10**9)
def test_a_number_is_served_or_refused(argument: str, value: float) -> None:
    changes = {"tasks": None} if argument == "classes_per_task" else {}
    outcome(stream(**changes, **{argument: value}), argument)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 3) | st.sampled_from([math.nan, 1.5]), max_size=3))
@example([1, 2])
@example([])
def test_epochs_of_each_task_are_served_or_refused(epochs: list[Any]) -> None:
    found = outcome(stream(epochs_per_task=epochs), "epochs_per_task")
    assert found is None or list(found.schedule.epochs) == epochs


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([-1, 0, 1, 3, 17, 10**6]), st.booleans(), st.integers(-(2**40), 2**70))
@example(1, False, 0)  # a batch of one
@example(10**6, True, 0)  # larger than the data
def test_batches_of_any_size(batch_size: int, joint: bool, seed: int) -> None:
    outcome(stream(batch_size=batch_size, joint=joint, seed=seed), "batch_size|seed")


def sources(value: Any, kind: str) -> ReplaySource:
    if kind == "reservoir":
        return ReservoirBuffer(images=value)
    if kind == "balanced":
        return ClassBalancedBuffer(bytes=value)
    return MixedReplay([ReservoirBuffer(images=value), ClassBalancedBuffer(images=10)], shares=[value, 1.0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(["reservoir", "balanced", "mixed"]),
    st.one_of(st.integers(-1, 200), st.sampled_from([*NOT_FINITE, 2.5, 10**12])),
    st.floats(-0.5, 1.5) | st.sampled_from(NOT_FINITE),
    st.sampled_from([1, 2, 16]),
)
@example("reservoir", 1, 0.5, 16)
@example("balanced", 64, 0.5, 16)  # room for one image, and two classes
@example("balanced", 63, 0.5, 16)  # and for none
@example("mixed", 5, 0.999, 1)
@example("mixed", 19, 0.25, 16)  # a share that has no turn in an epoch
def test_replay_is_served_or_refused(kind: str, room: Any, share: float, batch_size: int) -> None:
    assume(not 0.9999 < share < 1)  # a replay batch of any size is served

    def made() -> TaskDataModule:
        module = ReplayDataModule(replay=sources(room, kind), replay_share=share, batch_size=batch_size, **DIGITS)
        module.replay.begin(module._old_tasks(1))
        return served(module)

    outcome(made, "replay_share|images|bytes|room|shares")


class Foreign(Dataset[Any]):
    """Somebody else's data."""

    def __init__(self, image: Any, label: Callable[[int], Any], size: int = 12) -> None:
        self.image, self.label, self.size = image, label, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.image, self.label(index)


GREY = torch.linspace(0, 1, 64).reshape(1, 8, 8)
IMAGES: dict[str, Any] = {
    "float": GREY,
    "uint8": (GREY * 255).byte(),
    "float64": GREY.double(),
    "float16": GREY.half(),
    "constant": torch.zeros(1, 8, 8),
    "flat": GREY[0],
    "array": GREY[0].numpy(),
    "in [-1, 1]": GREY * 2 - 1,
    "in [0, 255]": GREY * 255,
    "not a number": GREY * math.nan,
    "one not a number": torch.where(GREY > 0.5, math.nan, GREY),
    "infinite": GREY + math.inf,
    "integers": (GREY * 255).long(),
    "booleans": GREY > 0.5,
    "a batch": GREY[None],
    "complex": GREY.to(torch.complex64),
    "no rows": GREY[:, :0],
    "no channel": GREY[:0],
    "two channels": GREY.expand(2, 8, 8),
    "nothing": None,
    "text": "image",
}
LABELS: dict[str, Callable[[int], Any]] = {
    "integers": lambda index: index % 2,
    "tensors": lambda index: torch.tensor(index % 2),
    "of one class": lambda index: 0,
    "negative": lambda index: index % 2 - 1,
    "text": lambda index: "cat",
    "not a number": lambda index: math.nan,
    "several": lambda index: torch.tensor([1, 2]),
    "fractions": lambda index: index % 2 + 0.5,
}


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("image", IMAGES)
def test_images_of_any_kind_are_served_or_refused(image: str, size: int | None) -> None:
    dataset = Foreign(IMAGES[image], LABELS["integers"])
    made = stream(dataset=dataset, tasks=[[0], [1]], classes=None, fraction=1.0, image_size=size)
    outcome(made, r"item \d+ of Foreign")


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_any_kind_are_served_or_refused(label: str) -> None:
    dataset = Foreign(GREY, LABELS[label])
    made = stream(dataset=dataset, tasks=None, classes=None, classes_per_task=1, fraction=1.0)
    outcome(made, "label|dataset")


def test_an_empty_data_set_is_refused() -> None:
    made = stream(dataset=Foreign(GREY, LABELS["integers"], size=0), tasks=None, classes=None, classes_per_task=1)
    assert outcome(made, "empty") is None
