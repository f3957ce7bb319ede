"""Where images of old tasks come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from cl_diffusion.data.images import Shape
from cl_diffusion.data.selection import Samples


@dataclass(frozen=True)
class OldTasks:
    """What is replayed while a task is trained: the tasks before it.

    ``task``: the one that is trained, counted from 0. ``classes``: of each task before it. ``real``: their training
    images. ``shape``: ``(C, H, W)`` of an image. ``seed``: of everything that is drawn.
    """

    task: int
    classes: Sequence[Sequence[int]]
    real: Samples
    shape: Shape
    seed: int

    @property
    def all_classes(self) -> list[int]:
        """Every class of the tasks before."""
        return [label for classes in self.classes for label in classes]

    @property
    def image_bytes(self) -> int:
        """An image in bytes, one a value."""
        channels, height, width = self.shape
        return channels * height * width


Pool = tuple[float, Samples]
"""Images to replay, and the share of the replay that they make."""


class ReplaySource(ABC):
    """Gives the images that are replayed beside a task: a buffer of real ones, or a model's."""

    @abstractmethod
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        """Images of the old tasks, in pools whose shares add up to 1; the same in every epoch of a task.

        On several processes each is asked, and each gets the same.
        """

    @property
    def name(self) -> str:
        """By which a checkpoint is recognised."""
        return type(self).__name__

    def begin(self, last: OldTasks) -> None:  # noqa: B027
        """Before a fit: forget what was drawn for another, and refuse what would fail beside the last task.

        Raises:
            ValueError: there is no room for the tasks before the last.
        """

    def state_dict(self) -> dict[str, Any]:
        """What cannot be had again after an interruption."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The inverse of ``state_dict``."""


def of_labels(labels: Tensor) -> dict[int, Tensor]:
    """The positions of each label."""
    return {int(label): (labels == label).nonzero().flatten() for label in labels.unique()}
