"""An order of training that depends on the seed and the epoch alone, and a loader that can start within it."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from cl_diffusion.data.permutation import Purpose, keyed_permutation


class KeyedSampler(DistributedSampler[int]):
    """This process's share of a permutation keyed on ``(seed, epoch)``.

    With ``W`` processes, process ``r`` visits entries ``r, r + W, ...`` of the permutation of all ``n`` samples,
    wrapped around to ``ceil(n / W)`` entries on each: every sample is visited, and up to ``W - 1`` of them twice.
    Being a ``DistributedSampler``, it is left alone by Lightning, which would otherwise shard a second time.

    Args:
        dataset: what is sampled; only its length is used.
        seed: of the order.
        epoch: of the order; Lightning moves it on by ``set_epoch``.
        num_replicas: ``W``.
        rank: ``r``.
        shuffle: False visits the samples in the data set's own order in every epoch.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int,
        epoch: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed, shuffle=shuffle)  # type: ignore[arg-type]
        self.epoch = epoch
        self._visited = (epoch, 0)

    @property
    def visited(self) -> int:
        """How many of this epoch's samples are passed over, because they were visited before a resume."""
        epoch, visited = self._visited
        return visited if epoch == self.epoch else 0

    def skip(self, epoch: int, samples: int) -> None:
        """Passes over the first samples of one epoch; other epochs stay whole."""
        self._visited = (epoch, samples)

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)  # type: ignore[arg-type]
        order = torch.arange(length)
        if self.shuffle:
            order = keyed_permutation(length, self.seed, Purpose.EPOCH, self.epoch)
        share = torch.arange(self.rank, self.total_size, self.num_replicas) % length
        return iter(order[share][self.visited :].tolist())


class ResumableLoader(DataLoader[Any]):
    """A loader over a ``KeyedSampler`` whose state is the epoch and the batches yielded of it (0 at its end).

    ``iter()`` draws nothing and starts no worker: both wait for the first batch. A state that is loaded applies to its
    epoch only, so that one saved at an epoch's end, or under ``limit_train_batches``, leaves the next epoch whole.
    """

    _yielded = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._yielded = self.sampler.visited // self._size if isinstance(self.sampler, KeyedSampler) else 0
        for batch in super().__iter__():
            self._yielded = (self._yielded + 1) % len(self)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batches yielded of it; nothing where the sampler was replaced (``overfit_batches``)."""
        if not isinstance(self.sampler, KeyedSampler):
            return {}
        return {"epoch": self.sampler.epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues behind the batches that the state counts."""
        if state and isinstance(self.sampler, KeyedSampler):
            self.sampler.skip(state["epoch"], state["batches"] * self._size)

    @property
    def _size(self) -> int:
        return self.batch_size or 1
