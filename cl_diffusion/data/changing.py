"""One data set as many tasks, each of which changes it in another way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from cl_diffusion.data.datamodule import TaskDataModule
from cl_diffusion.data.images import Shape
from cl_diffusion.data.labelled import LabelledImages
from cl_diffusion.data.permutation import Purpose, keyed_generator, keyed_permutation
from cl_diffusion.data.sampler import KeyedSampler, ResumableLoader
from cl_diffusion.data.selection import Samples, Selection
from cl_diffusion.data.sources import SourceName

Change = Literal["pixels", "labels", "random_labels"]


class ChangingDataModule(TaskDataModule):
    """The same images over and over, changed anew in each task: the benchmarks of plasticity.

    A ``TaskStream`` whose every task has all classes. What a task changes is a function of the seed and the task.

    Args:
        change: ``"pixels"``: the pixels of every image are permuted, alike; ``"labels"``: the classes are, so that
            each has another label; ``"random_labels"``: every image has a label of its own, at random.
        num_tasks: how many.
        images_per_task: so many images a task, other ones in each unless the labels are random; all where not given.
        dataset, root, epochs_per_task, batch_size, holdout, fraction, image_size, channels, seed, download, resident:
            see ``TaskDataModule``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        change: Change = "pixels",
        num_tasks: int = 10,
        images_per_task: int | None = None,
        dataset: SourceName | Dataset = "digits",  # type: ignore[type-arg]  # jsonargparse fails on Dataset[Any]
        root: str = "data",
        epochs_per_task: int = 1,
        batch_size: int = 16,
        holdout: float = 0.2,
        fraction: float = 1.0,
        image_size: int | None = None,
        channels: int | None = None,
        seed: int = 0,
        download: bool = False,
        resident: bool = False,
    ) -> None:
        if change not in get_args(Change):
            raise ValueError(f"change={change!r}: expected one of {', '.join(get_args(Change))}.")
        for name, value in (("num_tasks", num_tasks), ("images_per_task", images_per_task)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number, at least 1.")
        self.change: Change = change
        self._num_tasks = num_tasks
        self.images_per_task = images_per_task
        super().__init__(
            dataset=dataset,
            root=root,
            classes_per_task=1,
            epochs_per_task=epochs_per_task,
            batch_size=batch_size,
            holdout=holdout,
            fraction=fraction,
            image_size=image_size,
            channels=channels,
            seed=seed,
            download=download,
            resident=resident,
        )
        self.save_hyperparameters(logger=False)

    @property
    @override
    def num_tasks(self) -> int:
        return self._num_tasks

    @override
    def task_classes(self, task: int) -> list[int]:
        return list(self.scenario.split.classes)

    @override
    def training_loader(self, task: int, epoch: int) -> Any:
        share = self._share
        changed = self._changed(self.scenario.training, task)
        selection = Selection(changed, self._indices(task), device=self._residence)
        sampler = KeyedSampler(selection, self.seed, epoch, share["num_replicas"], share["rank"])
        return ResumableLoader(selection, sampler=sampler, **self._loading(epoch))

    @override
    def importance_dataloader(self, task: int | None = None) -> DataLoader[Any]:
        task = self.current_task if task is None else task
        share, indices = self._share, self._indices(task)
        mine = indices[share["rank"] :: share["num_replicas"]]
        return DataLoader(Selection(self._changed(self.scenario.training, task), mine, keyed=True), **self._loading())

    @override
    def reference_dataloader(self, task: int) -> DataLoader[Any]:
        images = self._changed(self.scenario.training, task)
        return DataLoader(Selection(images, self._indices(task), keyed=True), **self._loading())

    @override
    def evaluation_dataloader(self, task: int) -> DataLoader[Any]:
        images = self._changed(self.scenario.held_out, task)
        indices = self.scenario.held_out.indices(self.scenario.split.classes)
        return DataLoader(Selection(images, indices, keyed=True), **self._loading())

    @override
    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The current task's held-out samples."""
        return [self.evaluation_dataloader(self.current_task)]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._changes()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stream.

        Raises:
            ValueError: the checkpoint's data set, or what its tasks change, is not this stream's.
        """
        super().load_state_dict(state_dict)
        mine = self._changes()
        if other := {name: state_dict[name] for name, own in mine.items() if state_dict.get(name, own) != own}:
            raise ValueError(
                f"{mine}, but the checkpoint is of a stream with {other}. Give these, or start without it."
            )

    def _changes(self) -> dict[str, Any]:
        return {"change": self.change, "num_tasks": self.num_tasks, "change_seed": self.seed}

    def _indices(self, task: int) -> Tensor:
        every = self.scenario.training.indices(self.scenario.split.classes)
        if self.images_per_task is None:
            return every
        if self.images_per_task > len(every):
            raise ValueError(f"images_per_task={self.images_per_task}: there are {len(every)}; give at most that.")
        which = 0 if self.change == "random_labels" else task
        return every[keyed_permutation(len(every), self.seed, Purpose.LIMIT, which)[: self.images_per_task]]

    def _changed(self, samples: Samples, task: int) -> LabelledImages:
        return ChangedImages(samples.images, self.change, self.seed, task)


class ChangedImages(LabelledImages):
    """Images whose pixels or labels are another task's.

    Args:
        base: the images as they are.
        change: of what.
        seed: of the change.
        task: whose.
    """

    def __init__(self, base: LabelledImages, change: Change, seed: int, task: int) -> None:
        self.base = base
        self.num_classes = base.num_classes
        self.labels = base.labels
        self._pixels: Tensor | None = None
        if change == "pixels":
            channels, height, width = base.shape
            self._pixels = keyed_permutation(channels * height * width, seed, Purpose.CHANGE, task)
        elif change == "labels":
            self.labels = keyed_permutation(base.num_classes, seed, Purpose.CHANGE, task)[base.labels]
        else:
            generator = keyed_generator(seed, Purpose.CHANGE, task)
            self.labels = torch.randint(base.num_classes, (len(base),), generator=generator)

    @property
    @override
    def shape(self) -> Shape:
        return self.base.shape

    @override
    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        images = self.base.images(indices)
        if self._pixels is None:
            return images
        return images.flatten(1)[:, self._pixels].reshape(images.shape)

    @override
    def on(self, device: torch.device) -> ChangedImages:
        moved = copy.copy(self)
        moved.base = self.base.on(device)
        moved._pixels = None if self._pixels is None else self._pixels.to(device)
        return moved


class SparseVectors(Dataset[Any]):
    """So many vectors of which each entry is uniform in [0, 1] with probability ``density``, else 0; as images.

    Args:
        samples: how many.
        side: of the image; vectors have ``side * side`` entries.
        density: of the entries.
        classes: labels, dealt out in turn.
        seed: of the entries.
    """

    def __init__(
        self, samples: int = 256, side: int = 8, density: float = 0.4, classes: int = 10, seed: int = 0
    ) -> None:
        if min(samples, side, classes) < 1 or not 0 <= density <= 1:
            raise ValueError(
                f"samples={samples}, side={side}, classes={classes}, density={density}: expected at least 1 of each, "
                "and a share in [0, 1]."
            )
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(samples, 1, side, side, generator=generator)
        self.images = values * (torch.rand(values.shape, generator=generator) < density)
        self.targets = torch.arange(samples) % classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])
