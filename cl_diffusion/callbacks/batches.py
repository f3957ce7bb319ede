"""The batches of a pass between epochs, as the module's own steps would get them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from cl_diffusion.keys import KeyedBatch


class TransferredBatches(Iterable[Any]):
    """Batches after precision conversion, the module's transfer hooks and the move to its device.

    Args:
        trainer: that runs the module.
        batches: ``KeyedBatch`` or plain; indices stay as they are.
    """

    def __init__(self, trainer: Trainer, batches: Iterable[Any]) -> None:
        self.trainer = trainer
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for item in self.batches:
            if isinstance(item, KeyedBatch):
                yield KeyedBatch(self._transfer(item.batch), item.indices)
            else:
                yield self._transfer(item)

    def _transfer(self, batch: Any) -> Any:
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.trainer.lightning_module._on_before_batch_transfer(batch)
        return self.trainer.strategy.batch_to_device(batch)


def training_batches(trainer: Trainer) -> Iterable[Any]:
    """The training batches of a project that knows nothing of tasks, as many as an epoch has.

    Several loaders are combined as the fit combines them; ``limit_train_batches`` holds here too. Of a loader without a
    length, which may have no end, come as many as this epoch has trained on. A fit that goes on keeps its workers.

    Raises:
        ValueError: a loader without a length, and this epoch has trained on none yet.
    """
    loaders: Any = tree_map(_with_workers_of_its_own, trainer.train_dataloader)
    if isinstance(loaders, (dict, list, tuple)):
        loaders = _Combined(CombinedLoader(loaders, trainer.fit_loop._combined_loader._mode))  # type: ignore[union-attr]
    number = trainer.num_training_batches
    if number == float("inf"):
        number = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if not number:
            raise ValueError(
                "samples are asked for, before an epoch has trained on any, of a loader without a length, which may "
                "have no end; give Trainer(limit_train_batches=...), or the loader a length"
            )
    return _Limited(loaders, int(number))


def keyed(batches: Iterable[Any]) -> Iterator[KeyedBatch]:
    """The batches with an index a sample: its own, or where it has none its position."""
    position = 0
    for item in batches:
        if isinstance(item, KeyedBatch):
            yield item
            continue
        size = len(item[0])
        yield KeyedBatch(item, torch.arange(position, position + size))
        position += size


def images_and_labels(batches: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """All images and labels in the order of their indices, however tasks deal them out."""
    every = list(keyed(batches))
    images, labels = joined([(batch[0].to(device), batch[1].to(device)) for batch, _ in every])
    order = torch.cat([indices for _, indices in every]).argsort().to(device)
    return images[order], labels[order]


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pairs of images and labels as one pair."""
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def _with_workers_of_its_own(loader: Any) -> Any:
    """Persistent workers serve one iteration at a time: another would break off that of the epoch."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    other = copy(loader)
    vars(other).update(persistent_workers=False, _iterator=None)  # assignment is refused once a loader is built
    return other


class _Limited(Iterable[Any]):
    """The first few batches, each time they are asked for."""

    def __init__(self, batches: Iterable[Any], number: int) -> None:
        self.batches = batches
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.number)


class _Combined(Iterable[Any]):
    def __init__(self, loader: CombinedLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _, _ in self.loader)
