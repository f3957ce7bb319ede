"""Which samples take part, class by class, and the samples of one task as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_diffusion.data.labelled import LabelledImages, on_device
from cl_diffusion.data.permutation import Purpose, keyed_permutation
from cl_diffusion.keys import KeyedBatch


@dataclass(frozen=True)
class Samples:
    """Labelled images and, for each class, the indices of those that take part (ascending)."""

    images: LabelledImages
    by_class: Mapping[int, Tensor]

    @classmethod
    def of(cls, images: LabelledImages, classes: Iterable[int], role: str) -> Samples:
        """All images of these classes.

        Raises:
            ValueError: if a class has none; ``role`` says of what.
        """
        by_class = {label: (images.labels == label).nonzero().flatten() for label in classes}
        if empty := [label for label, indices in by_class.items() if not len(indices)]:
            raise ValueError(f"classes: {empty} have no {role} images. Leave them out: classes=[...].")
        return cls(images, by_class)

    def hold_out(self, fraction: float, seed: int) -> tuple[Samples, Samples]:
        """Training and held-out samples: of each class ``round(fraction * n)``, at least one, are held out.

        Raises:
            ValueError: if a class is left with nothing to train on.
        """
        held_out = self._share(Purpose.HOLDOUT, seed, {c: max(1, round(fraction * n)) for c, n in self._counts()})
        rest = {label: _without(self.by_class[label], held_out.by_class[label]) for label in self.by_class}
        for label, indices in rest.items():
            if not len(indices):
                raise ValueError(
                    f"holdout={fraction} leaves class {label}, of {len(self.by_class[label])} images, with none to "
                    "train on. Lower it, or leave the class out with classes."
                )
        return Samples(self.images, rest), held_out

    def reduce(self, fraction: float, seed: int) -> Samples:
        """``round(fraction * n)`` samples of each class; a smaller fraction's are among a larger one's.

        Raises:
            ValueError: if a class is left with none.
        """
        counts = {label: round(fraction * n) for label, n in self._counts()}
        for label, n in self._counts():
            if not counts[label]:
                raise ValueError(f"fraction={fraction} leaves class {label}, of {n} images, with none. Raise it.")
        return self._share(Purpose.FRACTION, seed, counts)

    def limit(self, tasks: Iterable[Sequence[int]], count: int, seed: int) -> Samples:
        """At most ``count`` samples of each task's classes together, at random; fewer are among more.

        Raises:
            ValueError: if a class is left with none.
        """
        kept: dict[int, Tensor] = {}
        for classes in tasks:
            indices = self.indices(classes)
            order = keyed_permutation(len(indices), seed, Purpose.LIMIT, min(classes))
            chosen = indices[order[:count]]
            for label in classes:
                own = self.by_class[label]
                kept[label] = own[torch.isin(own, chosen)]
                if not len(kept[label]):
                    raise ValueError(f"training_samples={count} a task leaves class {label} with none. Raise it.")
        return Samples(self.images, kept)

    def indices(self, classes: Iterable[int]) -> Tensor:
        """The indices of all samples of these classes, ascending: int64 ``(n,)``."""
        return torch.cat([self.by_class[label] for label in classes]).sort().values

    def _counts(self) -> list[tuple[int, int]]:
        return [(label, len(indices)) for label, indices in self.by_class.items()]

    def _share(self, purpose: Purpose, seed: int, counts: Mapping[int, int]) -> Samples:
        """The first ``counts[label]`` samples of each class in an order keyed on the class."""
        return Samples(
            self.images,
            {
                label: indices[keyed_permutation(len(indices), seed, purpose, label)[: counts[label]]].sort().values
                for label, indices in self.by_class.items()
            },
        )


class Selection(Dataset[Any]):
    """The samples at some indices of labelled images, fetched a batch at a time.

    A batch is ``(images, labels)``, float32 ``(B, C, H, W)`` in [-1, 1] and int64 ``(B,)``; ``keyed`` makes it a
    ``KeyedBatch`` of that and the samples' indices in the images' data set. With a ``device``, batches are gathered
    there, of images that are held there where they are held in memory.
    """

    def __init__(
        self, images: LabelledImages, indices: Tensor, *, keyed: bool = False, device: torch.device | None = None
    ) -> None:
        self.images = images if device is None else images.on(device)
        self.labels = images.labels if device is None else images.labels.to(device)
        self.indices = indices
        self.keyed = keyed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        index = int(self.indices[position])
        return self.images.images([index])[0], self.labels[index]

    def __getitems__(self, positions: list[int]) -> Any:
        indices = self.indices[torch.as_tensor(positions)]
        batch = self.images.images(indices), self.labels[on_device(indices, self.labels.device)]
        return KeyedBatch(batch, indices) if self.keyed else batch


class Labels(Dataset[Any]):
    """Class labels to draw images of, fetched a batch at a time: int64 ``(B,)``."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Tensor:
        return self.labels[position]

    def __getitems__(self, positions: list[int]) -> Tensor:
        return self.labels[torch.as_tensor(positions)]


def whole_batch(batch: Any) -> Any:
    """Collates nothing: ``Selection`` and ``Labels`` fetch whole batches."""
    return batch


def _without(indices: Tensor, taken: Tensor) -> Tensor:
    return indices[~torch.isin(indices, taken)]
