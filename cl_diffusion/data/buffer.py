"""Buffers of real images of old tasks."""

from __future__ import annotations

from abc import abstractmethod

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.data.permutation import Purpose
from cl_diffusion.data.replay_source import OldTasks, Pool, ReplaySource
from cl_diffusion.data.selection import Samples
from cl_diffusion.keys import derive_keys


class Buffer(ReplaySource):
    """So many real images of old tasks as fit a budget.

    Which images these are is a function of the seed and the tasks so far, so that nothing need be kept for a resume. A
    later buffer holds, of the tasks before, only images that an earlier one held, as if those were all that is left.

    Args:
        images: how many.
        bytes: in place of ``images``, how many bytes, at one for each value of an image.

    Raises:
        ValueError: neither or both are given, or one is not positive.
    """

    def __init__(self, images: int | None = None, bytes: int | None = None) -> None:
        if (images is None) == (bytes is None) or not is_whole(images if bytes is None else bytes, 1):
            raise ValueError(f"images={images!r}, bytes={bytes!r}; expected one of them, a positive number")
        self.images = images
        self.bytes = bytes

    @override
    def begin(self, last: OldTasks) -> None:
        self.check(last, self._room(last))

    @override
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        return [(1.0, Samples(old.real.images, self.choose(old, self._room(old))))]

    @abstractmethod
    def check(self, old: OldTasks, room: int) -> None:
        """Refuse a room that cannot hold what the buffer promises.

        Raises:
            ValueError: a class that the buffer promises has no image.
        """

    @abstractmethod
    def choose(self, old: OldTasks, room: int) -> dict[int, Tensor]:
        """The indices of at most ``room`` real images, by class.

        Raises:
            ValueError: a class that the buffer promises has no image.
        """

    def _room(self, old: OldTasks) -> int:
        if self.images is not None:
            return self.images
        assert self.bytes is not None
        room = self.bytes // old.image_bytes
        if room < 1:
            raise ValueError(
                f"bytes={self.bytes}, but one image of shape {old.shape} takes {old.image_bytes}; give at least that "
                "for each class that is to be replayed"
            )
        return room


class ReservoirBuffer(Buffer):
    """A uniform sample of all images seen so far (Vitter 1985, algorithm R): larger classes have more of it.

    Each image has a random priority, a function of (seed, index); those of the highest are held. A small reservoir may
    hold no image of a class, and then does not replay it: it warns.
    """

    @override
    def check(self, old: OldTasks, room: int) -> None:
        """Any is good enough."""

    @override
    def choose(self, old: OldTasks, room: int) -> dict[int, Tensor]:
        indices = old.real.indices(old.all_classes)
        kept = indices[_priorities(indices, old.seed).argsort()[:room]]
        chosen = {label: kept[torch.isin(kept, own)].sort().values for label, own in _old(old).items()}
        if missing := [label for label, indices in chosen.items() if not len(indices)]:
            rank_zero_warn(
                f"a ReservoirBuffer of {room} images holds none of the classes {missing} beside task {old.task + 1}"
            )
        return chosen


class ClassBalancedBuffer(Buffer):
    """As many images of each class seen so far, give or take one: a class gives up images as others come."""

    @override
    def check(self, old: OldTasks, room: int) -> None:
        if room < len(old.all_classes):
            raise ValueError(
                f"a ClassBalancedBuffer of {room} images cannot hold one of each of the {len(old.all_classes)} classes "
                f"before task {old.task + 1}; give it more room, or use ReservoirBuffer"
            )

    @override
    def choose(self, old: OldTasks, room: int) -> dict[int, Tensor]:
        self.check(old, room)
        each, more = divmod(room, len(old.all_classes))
        return {
            label: own[_priorities(own, old.seed).argsort()[: each + (position < more)]].sort().values
            for position, (label, own) in enumerate(_old(old).items())
        }


def _old(old: OldTasks) -> dict[int, Tensor]:
    return {label: old.real.by_class[label] for label in old.all_classes}


def _priorities(indices: Tensor, seed: int) -> Tensor:
    return derive_keys(seed, indices, draw=Purpose.BUFFER)
