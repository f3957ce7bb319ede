"""Inner products of per-sample gradients, of which no more are held than a budget allows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_diffusion.fisher.repeatable import require_repeatable
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.fisher.undisturbed import undisturbed
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.processes import gathered

_COLUMNS = 2**16


class Columns(NamedTuple):
    """A part of a parameter's entries."""

    name: str
    start: int
    stop: int


class InnerProducts(NamedTuple):
    """Of the gradients of all samples of several sources, one source after the other, on the CPU.

    ``products``: ``K_ij = g_i^T g_j``, float64 ``(n, n)``. ``indices``: of the samples of each source, ascending.
    ``squares``: for a source that they were asked of, the same of the squared entries, ``(g_i * g_i)^T (g_j * g_j)``.
    """

    products: Tensor
    indices: list[Tensor]
    squares: dict[int, Tensor]

    @property
    def counts(self) -> list[int]:
        """Samples of each source."""
        return [len(of) for of in self.indices]

    def members(self, source: int) -> Tensor:
        """The positions of a source's samples."""
        start = sum(self.counts[:source])
        return torch.arange(start, start + self.counts[source])


@torch.no_grad()
def inner_products(
    sources: Sequence[Samples], memory_budget: int = 2**30, squares: Collection[int] = ()
) -> InnerProducts:
    """Of the gradients of all samples of all sources, which are views of one model at the same weights.

    A pass over the sources sees so many entries of the parameters that those of all samples' gradients fit the budget;
    there are as many passes as that takes, each the same gradients, for draws are a function of the keys. Where a
    process group is initialised each process has its share of every source, and gets all products.

    Args:
        sources: a task, a band or a residual each, of the same parameters.
        memory_budget: bytes of gradients held at once, in the parameters' precision.
        squares: the sources whose squared entries' products are asked for too.

    Raises:
        ValueError: there are no samples, one comes twice in a source, sources are of other parameters, or a loss
            changes from pass to pass.
        FloatingPointError: a gradient is not finite.
    """
    first = sources[0]
    shapes = [{name: p.shape for name, p in source.gradients.parameters.items()} for source in sources]
    if any(each != shapes[0] for each in shapes):
        raise ValueError("sources are of different parameters, so that their gradients have no inner products")
    with undisturbed(first.population.model):
        for source in sources:
            require_repeatable(source)
        indices = [gathered(_indices(source)) for source in sources]
        if any(len(of.unique()) < len(of) for of in indices):
            raise ValueError("a sample comes twice in a source: indices repeat, or a residual has several outcomes")
        total = sum(len(of) for of in indices)
        if not total:
            raise ValueError("batches hold no samples; expected at least one")
        entries = max(1, memory_budget // (total * first.gradients.dtype.itemsize))
        products = torch.zeros(total, total, dtype=torch.float64, device=first.device)
        squared = {s: products.new_zeros(len(indices[s]), len(indices[s])) for s in squares}
        for columns in _groups(first, entries):
            rows = [gathered(_rows(source, columns)) for source in sources]
            for wide in zip(*(of.split(_COLUMNS, dim=1) for of in rows), strict=True):
                parts = [of.to(first.device, torch.float64) for of in wide]
                _add_products(products, parts)
                for s, sums in squared.items():
                    square = parts[s].square()
                    sums += square @ square.T
    order = [of.argsort() for of in indices]
    offsets = [sum(map(len, indices[:number])) for number in range(len(indices))]
    sorted_ = torch.cat([offset + of for offset, of in zip(offsets, order, strict=True)])
    return InnerProducts(
        products.cpu()[sorted_][:, sorted_],
        [of[by] for of, by in zip(indices, order, strict=True)],
        {s: sums.cpu()[order[s]][:, order[s]] for s, sums in squared.items()},
    )


@torch.no_grad()
def combination(sources: Sequence[Samples], found: InnerProducts, coordinates: Tensor) -> Parameters:
    """``sum_i c_i g_i``, float64: a direction that is known by its coordinates, as a vector of parameters.

    One ordinary backward a batch of the sources that take part.

    Args:
        sources: those that ``found`` is of.
        found: their inner products.
        coordinates: ``c``, ``(n,)``.
    """
    total = sources[0].zeros()
    with undisturbed(sources[0].population.model):
        for number, source in enumerate(sources):
            own = coordinates[found.members(number)]
            if not bool(own.any()):
                continue
            by_index = dict(zip(found.indices[number].tolist(), own.tolist(), strict=True))
            for drawn in source.drawn():
                weights = torch.tensor([by_index[index] for index in drawn.indices.tolist()], dtype=torch.float64)
                parameters.add_mixed_(total, source.summed(drawn, weights))
    sources[0].all_reduce(total)
    return total


def _indices(source: Samples) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(drawn.indices for drawn in source.drawn())])


def _add_products(total: Tensor, parts: Sequence[Tensor]) -> None:
    """Add ``R R^T`` of the stacked rows, each block of two sources once."""
    ends = [0, *torch.tensor([len(of) for of in parts]).cumsum(0).tolist()]
    for number, of in enumerate(parts):
        own = slice(ends[number], ends[number + 1])
        block = torch.cat(list(parts[: number + 1])) @ of.T
        total[: ends[number + 1], own] += block
        if number:
            total[own, : ends[number]] += block[: ends[number]].T


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
