"""A data set as a stream of tasks within one fit."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cl_diffusion.arguments import is_whole
from cl_diffusion.data.images import ImageFormat, Shape
from cl_diffusion.data.permutation import Purpose, keyed_generator
from cl_diffusion.data.sampler import KeyedSampler, ResumableLoader
from cl_diffusion.data.scenario import Scenario
from cl_diffusion.data.schedule import TaskSchedule
from cl_diffusion.data.selection import Labels, Samples, Selection, whole_batch
from cl_diffusion.data.sources import SourceName
from cl_diffusion.data.tasks import ClassOrder
from cl_diffusion.plain_hyperparameters import PlainHyperparameters


class TaskDataModule(PlainHyperparameters, LightningDataModule):
    """Serves a data set as an ordered list of tasks; a ``TaskStream`` for one ``Trainer.fit`` over all of them.

    Epoch ``e`` trains task ``task_at(e)``, so a stream of several tasks needs a Trainer with
    ``reload_dataloaders_every_n_epochs=1`` and ``max_epochs=num_epochs``. Training batches are ``(images, labels)``,
    held-out and importance batches are ``KeyedBatch(batch=(images, labels), indices)``, batches to predict are labels;
    images float32 ``(B, C, H, W)`` in [-1, 1], labels int64 ``(B,)`` with the data set's own class ids.
    On several processes each trains on its share of one order, keyed on seed and epoch, whatever
    ``use_distributed_sampler`` says.

    Args:
        dataset: a name, or any map-style data set of ``(image, label)``: PIL images, or tensors or arrays, uint8 or
            floats in [0, 1].
        root: folder of the data; torchvision's layout, or one folder a class for ``image_folder``.
        tasks: the classes of each task, in order.
        classes_per_task: in place of ``tasks``, so many classes each; 2 where neither is given.
        classes: the classes that take part; all where not given.
        class_order: with ``classes_per_task``: by label where not given, a list, or ``shuffled`` by the seed.
        epochs_per_task: one number for all tasks, or one each.
        batch_size: samples a batch and process; a last short batch is kept.
        holdout: fraction of each class that is held out, where the data set has no held-out images of its own.
        fraction: fraction of each class's training images that is used.
        training_samples: at most so many training images a task, of those; all where not given.
        image_size: side of the square images in pixels; native where not given.
        resize: ``resize`` scales the shorter side and crops the centre, ``pad`` centres on black.
        channels: 1 or 3; the data set's own where not given.
        joint: train every epoch on all tasks' data together, the upper bound: as many epochs as one task has, all of
            them the last task's.
        seed: of the order of training, the held-out samples, those that take part and the class order.
        num_workers: processes that load data; 0 is fastest for data held in memory.
        resident: hold data that is held in memory on the Trainer's device, uint8 as it is, and gather training batches
            there: the same ones, without a copy in each step.
        download: let torchvision download what is missing.
        importance_samples: at most so many samples a task in an importance pass; all where not given.
        predict_classes: the labels to draw in ``predict``; all that take part where not given.
        images_per_class: how many of each.

    Raises:
        ValueError: if an argument is out of range or contradicts another, or (in ``setup``) the data or the Trainer.
    """

    def __init__(
        self,
        dataset: SourceName | Dataset = "digits",  # type: ignore[type-arg]  # jsonargparse fails on Dataset[Any]
        root: str = "data",
        tasks: list[list[int]] | None = None,
        classes_per_task: int | None = None,
        classes: list[int] | None = None,
        class_order: ClassOrder = None,
        epochs_per_task: int | list[int] = 1,
        batch_size: int = 64,
        holdout: float = 0.2,
        fraction: float = 1.0,
        image_size: int | None = None,
        resize: Literal["resize", "pad"] = "resize",
        channels: int | None = None,
        joint: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        download: bool = False,
        importance_samples: int | None = None,
        predict_classes: list[int] | None = None,
        images_per_class: int = 16,
        training_samples: int | None = None,
        resident: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.scenario = Scenario(
            dataset=dataset,
            root=root,
            download=download,
            image_format=ImageFormat(image_size, resize, channels),
            task_arguments={
                "tasks": tasks,
                "classes_per_task": classes_per_task,
                "classes": classes,
                "class_order": class_order,
            },
            holdout=holdout,
            fraction=fraction,
            training_samples=training_samples,
            joint=joint,
            seed=seed,
        )
        self.epochs_per_task, self.seed = epochs_per_task, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.importance_samples, self.predict_classes = importance_samples, predict_classes
        self.images_per_class = images_per_class
        self.resident = resident
        if resident and num_workers:
            raise ValueError(f"resident=True with num_workers={num_workers}: batches are gathered in place; set 0.")
        for name in ("batch_size", "images_per_class", "importance_samples"):
            value = getattr(self, name)
            if not is_whole(value, 1) and not (value is None and name == "importance_samples"):
                raise ValueError(f"{name}={value!r}: expected a whole number, at least 1.")
        if not is_whole(num_workers, 0):
            raise ValueError(f"num_workers={num_workers!r}: expected a whole number, at least 0.")
        if self.scenario.classes_are_known:
            self._check_stream()

    @cached_property
    def schedule(self) -> TaskSchedule:
        """The epochs of each task."""
        return TaskSchedule.of(self.num_tasks, self.epochs_per_task, self.scenario.joint)

    @property
    def num_tasks(self) -> int:
        """How many tasks the stream holds."""
        return len(self.scenario.split)

    @property
    def num_epochs(self) -> int:
        """How many epochs the whole stream takes: what ``max_epochs`` has to be."""
        return self.schedule.num_epochs

    def task_at(self, epoch: int) -> int:
        """The task that is trained in this epoch; ``num_tasks`` past the last epoch of the stream."""
        return self.schedule.task_at(epoch)

    @property
    def current_task(self) -> int:
        """The task of the Trainer's epoch: the first without a Trainer, the last past the end of the stream."""
        return min(self.task_at(self._epoch), self.num_tasks - 1)

    def task_classes(self, task: int) -> list[int]:
        """The classes of a task."""
        return list(self.scenario.split[task])

    @property
    def num_classes(self) -> int:
        """Size of the data set's label space, whichever classes take part."""
        return self.scenario.num_classes

    @property
    def image_shape(self) -> Shape:
        """``(C, H, W)`` of the images that are served."""
        return self.scenario.image_shape

    def prepare_data(self) -> None:
        """Downloads what is missing, if asked to."""
        self.scenario.download_data()

    def setup(self, stage: str) -> None:
        """Reads the data and refuses a Trainer that would not follow the stream.

        Raises:
            ValueError: if data or classes are missing, or the Trainer's epochs are not the stream's.
        """
        self._check_stream()
        if stage == TrainerFn.FITTING and self.trainer is not None:
            self.schedule.check(self.trainer)
        self.scenario.training  # noqa: B018

    def train_dataloader(self) -> Any:
        """The training data of the current epoch."""
        if self.trainer is not None:
            self.schedule.check_epoch(self._epoch, self.trainer)
        return self.training_loader(self.current_task, self._epoch)

    def training_loader(self, task: int, epoch: int) -> Any:
        """This process's batches of a task in an epoch: the method to override to add data to the task's own."""
        selection = Selection(
            self.scenario.training.images, self.scenario.training_indices(task), device=self._residence
        )
        share = self._share
        sampler = KeyedSampler(selection, self.seed, epoch, share["num_replicas"], share["rank"])
        return ResumableLoader(selection, sampler=sampler, **self._loading(epoch))

    def importance_dataloader(self, task: int | None = None) -> DataLoader[Any]:
        """The task's training samples, each once over all processes, in a fixed order: ``KeyedBatch``.

        The indices are those of the data set's training images. ``None`` is the current task.
        """
        task = self.current_task if task is None else task
        indices = self.scenario.importance_indices(task, self.importance_samples)
        share = self._share
        return self._keyed_loader(self.scenario.training, indices[share["rank"] :: share["num_replicas"]])

    def reference_dataloader(self, task: int) -> DataLoader[Any]:
        """The task's own training samples, also where ``joint``; all of them on every process: ``KeyedBatch``."""
        training = self.scenario.training
        return self._keyed_loader(training, training.indices(self.scenario.split[task]))

    def evaluation_dataloader(self, task: int) -> DataLoader[Any]:
        """The task's held-out samples, each once, in a fixed order; all of them on every process: ``KeyedBatch``."""
        return self._keyed_loader(self.scenario.held_out, self.scenario.held_out_indices(task))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """While fitting, the held-out samples of each task so far, in order; else those of every task."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return [
            self.evaluation_dataloader(task) for task in range(self.current_task + 1 if fitting else self.num_tasks)
        ]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """The held-out samples of every task, in order."""
        return [self.evaluation_dataloader(task) for task in range(self.num_tasks)]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Labels to draw, ``images_per_class`` of one class after the other: int64 ``(B,)``."""
        classes = torch.tensor(self.predict_classes or sorted(self.scenario.split.classes))
        labels = classes.repeat_interleave(self.images_per_class)
        return DataLoader(Labels(labels), **self._loading())

    def state_dict(self) -> dict[str, Any]:
        """The data set and its tasks, by which a checkpoint is recognised."""
        return {"dataset": self.scenario.name, "tasks": [list(task) for task in self.scenario.split]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stream.

        Raises:
            ValueError: if the checkpoint's data set or tasks are not this stream's.
        """
        for name, own in TaskDataModule.state_dict(self).items():
            if state_dict[name] != own:
                raise ValueError(
                    f"{name}={own!r}, but the checkpoint is of a stream with {name}={state_dict[name]!r}. "
                    f"Give the data module that {name}, or start without this checkpoint."
                )

    @property
    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    @property
    def _share(self) -> dict[str, int]:
        """Which share of the data is this process's, as Lightning's own distributed sampler would have it."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return share or {"num_replicas": 1, "rank": 0}

    @property
    def _residence(self) -> torch.device | None:
        """Where training batches are gathered; None: in the host's memory, to be copied."""
        return self.trainer.strategy.root_device if self.resident and self.trainer is not None else None

    def _keyed_loader(self, samples: Samples, indices: Tensor) -> DataLoader[Any]:
        return DataLoader(Selection(samples.images, indices, keyed=True), **self._loading())

    def _loading(self, epoch: int = 0) -> dict[str, Any]:
        """How a loader of this stream batches; with a generator of its own it leaves the global random state alone."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": whole_batch,
            "generator": keyed_generator(self.seed, Purpose.EPOCH, epoch),
            "pin_memory": self.num_workers > 0 and torch.cuda.is_available(),
        }

    def _check_stream(self) -> None:
        self.schedule  # noqa: B018
        if unknown := sorted(c for c in set(self.predict_classes or ()) if not 0 <= c < self.num_classes):
            raise ValueError(f"predict_classes names {unknown}: expected classes from 0 to {self.num_classes - 1}.")
