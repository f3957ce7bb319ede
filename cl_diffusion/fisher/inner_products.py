"""Inner products of per-sample gradients, of which no more are held than a budget allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_diffusion.fisher.samples import Samples
from cl_diffusion.fisher.undisturbed import undisturbed
from cl_diffusion.linalg import parameters

_COLUMNS = 2**16


class Columns(NamedTuple):
    """A part of a parameter's entries."""

    name: str
    start: int
    stop: int


class InnerProducts(NamedTuple):
    """``products``: ``K_ij = g_i^T g_j``, float64 ``(n, n)``, on the CPU. ``counts``: samples of each source."""

    products: Tensor
    counts: list[int]

    def members(self, source: int) -> Tensor:
        """The positions of a source's samples."""
        start = sum(self.counts[:source])
        return torch.arange(start, start + self.counts[source])


@torch.no_grad()
def inner_products(sources: Sequence[Samples], memory_budget: int = 2**30) -> InnerProducts:
    """Of the gradients of all samples of all sources, which are views of one model at the same weights.

    A pass over the sources sees so many entries of the parameters that those of all samples' gradients fit the budget;
    there are as many passes as that takes, each the same gradients, for draws are a function of the keys. Where a
    process group is initialised each process has its share of every source, and gets all products; a source's samples
    are then in the order of the processes.

    Args:
        sources: a task, a band or a residual each, of the same parameters.
        memory_budget: bytes of gradients held at once, in the parameters' precision.

    Raises:
        ValueError: there are no samples, sources are of other parameters, or a loss changes from pass to pass.
        FloatingPointError: a gradient is not finite.
    """
    first = sources[0]
    shapes = [{name: p.shape for name, p in source.gradients.parameters.items()} for source in sources]
    if any(each != shapes[0] for each in shapes):
        raise ValueError("sources are of different parameters, so that their gradients have no inner products")
    with undisturbed(first.population.model):
        for source in sources:
            source.require_repeatable()
        counts = [
            sum(source.gathered_objects(sum(len(drawn.indices) for drawn in source.drawn()))) for source in sources
        ]
        if not sum(counts):
            raise ValueError("batches hold no samples; expected at least one")
        entries = memory_budget // (sum(counts) * first.gradients.dtype.itemsize)
        total = torch.zeros(sum(counts), sum(counts), dtype=torch.float64, device=first.device)
        for columns in _groups(first, max(1, entries)):
            rows = torch.cat([source.gathered(_rows(source, columns)) for source in sources])
            for part in rows.split(_COLUMNS, dim=1):
                wide = part.to(first.device, torch.float64)
                total += wide @ wide.T
    return InnerProducts(total.cpu(), counts)


def _groups(samples: Samples, entries: int) -> Iterator[list[Columns]]:
    """All entries of all parameters, so many at a time."""
    group: list[Columns] = []
    room = entries
    for name, parameter in samples.gradients.parameters.items():
        start, size = 0, parameter.numel()
        while start < size:
            stop = min(size, start + room)
            group.append(Columns(name, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], entries
    if group:
        yield group


def _rows(samples: Samples, columns: Sequence[Columns]) -> Tensor:
    """These entries of each sample's gradient, ``(n, entries)``."""
    names = frozenset(part.name for part in columns)
    rows = [torch.empty(0, sum(part.stop - part.start for part in columns), dtype=samples.gradients.dtype)]
    for drawn in samples.drawn():
        for chunk in samples.per_sample(drawn, names):
            samples.finite(chunk, drawn)
            flat = {name: parameters.flat_rows(g) for name, g in chunk.items()}
            rows.append(torch.cat([flat[part.name][:, part.start : part.stop] for part in columns], 1).cpu())
    return torch.cat(rows)
