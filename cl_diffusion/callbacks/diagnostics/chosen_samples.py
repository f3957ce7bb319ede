"""So many samples of a task, at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cl_diffusion.fisher.batch import batch_size
from cl_diffusion.fisher.population import Rows, joinable, joined, select
from cl_diffusion.keys import KeyedBatch, derive_keys
from cl_diffusion.processes import gathered, rank, world_size


class Chosen(Iterable[KeyedBatch]):
    """So many samples at random, a function of the seed and their indices; this process's share of them.

    Found by one pass over the batches, and held.

    Args:
        batches: of one task.
        samples: in all processes together; all there are, where there are fewer.
        seed: of the choice.
    """

    def __init__(self, batches: Iterable[Any], samples: int, seed: int) -> None:
        held: list[tuple[Rows, Tensor]] = []
        position = largest = 0
        for item in batches:
            batch, indices = item if isinstance(item, KeyedBatch) else (item, None)
            size = batch_size(batch)
            largest = max(largest, size)
            if indices is None:
                indices = rank() + world_size() * torch.arange(position, position + size)
            position += size
            held.append((Rows(batch, indices, None), derive_keys(seed, indices, purpose="chosen")))
            held = _smallest(held, samples, torch.cat([keys for _, keys in held]))
        mine = torch.cat([torch.empty(0, dtype=torch.int64), *(keys for _, keys in held)])
        every = gathered(mine)
        self._held = _together([rows for rows, _ in _smallest(held, samples, every)], largest)
        self._total = min(samples, len(every))

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[KeyedBatch]:
        return (KeyedBatch(rows.batch, rows.indices) for rows in self._held)

    def all_have(self, part: Callable[[Any], Tensor | None]) -> bool:
        """Whether every batch has such a part."""
        return all(part(rows.batch) is not None for rows in self._held)


def _smallest(held: list[tuple[Rows, Tensor]], samples: int, keys: Tensor) -> list[tuple[Rows, Tensor]]:
    """What is held of the samples that have the smallest keys of all."""
    if len(keys) <= samples:
        return held
    most = keys.sort().values[samples - 1]
    kept = [(select(rows, own <= most), own[own <= most]) for rows, own in held]
    return [(rows, own) for rows, own in kept if len(own)]


def _together(pieces: list[Rows], size: int) -> list[Rows]:
    """In batches of about this size."""
    whole: list[Rows] = []
    for piece in pieces:
        if whole and len(whole[-1].indices) + len(piece.indices) <= size and joinable(whole[-1], piece):
            whole[-1] = joined([whole[-1], piece])
        else:
            whole.append(piece)
    return whole
