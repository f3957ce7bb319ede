"""A data set dealt out to tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from cl_diffusion.arguments import is_whole
from cl_diffusion.data.images import ImageFormat, Shape
from cl_diffusion.data.labelled import LabelledImages
from cl_diffusion.data.permutation import Purpose, keyed_permutation
from cl_diffusion.data.selection import Samples
from cl_diffusion.data.sources import Source, SourceName, source_of
from cl_diffusion.data.tasks import TaskSplit, check_task_arguments


@dataclass(frozen=True)
class Scenario:
    """The training and the held-out samples of each task; data is read when it is first asked for.

    Args:
        dataset: a name, or a map-style data set of ``(image, label)``.
        root: folder of the data.
        download: let torchvision download what is missing.
        image_format: what the images are turned into.
        task_arguments: the keywords of ``TaskSplit.of``.
        holdout: fraction of each class that is held out where the data set has no held-out images of its own.
        fraction: fraction of each class's training images that is used.
        training_samples: at most so many of each task.
        joint: the last task trains on every task's samples.
        seed: of the class order, the held-out samples and those that take part.

    Raises:
        ValueError: here if an argument is out of range or contradicts another; later if the data does not fit.
    """

    dataset: SourceName | Dataset[Any] = "digits"
    root: str = "data"
    download: bool = False
    image_format: ImageFormat = field(default_factory=ImageFormat)
    task_arguments: dict[str, Any] = field(default_factory=dict)
    holdout: float = 0.2
    fraction: float = 1.0
    training_samples: int | None = None
    joint: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_task_arguments(**self.task_arguments)
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout={self.holdout}: expected more than 0 and less than 1.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: expected more than 0 and at most 1.")
        if not is_whole(self.seed, -(2**63)):
            raise ValueError(f"seed={self.seed!r}: expected a whole number.")
        if self.training_samples is not None and not is_whole(self.training_samples, 1):
            raise ValueError(f"training_samples={self.training_samples}: expected at least 1, or None for all.")
        if self.dataset == "image_folder" and self.image_format.image_size is None:
            raise ValueError(
                "image_size=None: the images of an image_folder differ in size. Set image_size, say to 32."
            )
        if self.classes_are_known:
            self.split  # noqa: B018

    @property
    def name(self) -> str:
        """The data set's name, or the import path of its class."""
        kind = type(self.dataset)
        return self.dataset if isinstance(self.dataset, str) else f"{kind.__module__}.{kind.__qualname__}"

    @property
    def classes_are_known(self) -> bool:
        """Whether the classes are known without reading the data."""
        return self._source.num_classes is not None

    @cached_property
    def split(self) -> TaskSplit:
        """The classes of each task."""
        known = self._source.num_classes
        available = set(self._images[0].labels.tolist()) if known is None else range(known)
        return TaskSplit.of(available, seed=self.seed, **self.task_arguments)

    @property
    def num_classes(self) -> int:
        """Size of the data set's label space, whichever classes take part."""
        return self._source.num_classes or max(images.num_classes for images in self._images)

    @property
    def image_shape(self) -> Shape:
        """``(C, H, W)`` of the images."""
        native = self._source.shape
        return self._images[0].shape if native is None else self.image_format.shape(native)

    @property
    def training(self) -> Samples:
        """The training samples that take part."""
        return self._samples[0]

    @property
    def held_out(self) -> Samples:
        """The samples to evaluate on: the data set's own, or held out of its only ones."""
        return self._samples[1]

    def training_indices(self, task: int) -> Tensor:
        """The indices of a task's training samples, ascending: int64 ``(n,)``."""
        everything = self.joint and task == len(self.split) - 1
        return self.training.indices(self.split.classes if everything else self.split[task])

    def importance_indices(self, task: int, limit: int | None) -> Tensor:
        """At most ``limit`` of a task's training indices, ascending; which ones depends on ``(seed, task)`` alone."""
        indices = self.training_indices(task)
        if limit is None or limit >= len(indices):
            return indices
        order = keyed_permutation(len(indices), self.seed, Purpose.IMPORTANCE, task)
        return indices[order[:limit]].sort().values

    def held_out_indices(self, task: int) -> Tensor:
        """The indices of a task's held-out samples, ascending: int64 ``(n,)``."""
        return self.held_out.indices(self.split[task])

    def download_data(self) -> None:
        """Downloads what is missing, if asked to."""
        if self.download:
            self._load()

    @cached_property
    def _source(self) -> Source:
        return source_of(self.dataset)

    def _load(self) -> list[LabelledImages]:
        return self._source.load(self.root, self.download, self.image_format)

    @cached_property
    def _images(self) -> list[LabelledImages]:
        return self._load()

    @cached_property
    def _samples(self) -> tuple[Samples, Samples]:
        training = Samples.of(self._images[0], self.split.classes, "training")
        if len(self._images) == 1:
            training, held_out = training.hold_out(self.holdout, self.seed)
        else:
            held_out = Samples.of(self._images[1], self.split.classes, "held-out")
        training = training.reduce(self.fraction, self.seed)
        if self.training_samples is not None:
            training = training.limit(self.split, self.training_samples, self.seed)
        return training, held_out
