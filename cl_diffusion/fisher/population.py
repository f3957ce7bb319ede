"""What an importance operator is an expectation over: a model, its loss, and samples with their draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from cl_diffusion.fisher.batch import batch_size, has_samples
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.keys import KeyedBatch, derive_keys
from cl_diffusion.processes import rank, world_size

Draw = Callable[[Any, Tensor], Any]


class Rows(NamedTuple):
    """A batch whose random draws are made, and the index of each of its samples.

    ``reseed``: what torch's generator is to be seeded with before the loss is computed, where the loss draws for
    itself.
    """

    batch: Any
    indices: Tensor
    reseed: int | None


class Population:
    """A model, its loss, and the samples; each pass over them makes the draws anew, from the same keys.

    Args:
        model: any module with trainable parameters.
        loss: ``loss(model, batch) -> (B,)``.
        batches: this process's share; ``KeyedBatch`` where samples have indices, else a sample's index is its position
            (strided over processes, as a ``DistributedSampler`` deals them).
        draw: ``draw(batch, keys) -> batch`` makes all random draws beforehand, a function of the keys alone. Without it
            torch's global generator is seeded anew for each batch, and the operator is marked unkeyed.
        seed: of the draws.
        chunk_size: of ``vmap(grad)``; see ``LossGradients``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        draw: Draw | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.seed = seed
        self.chunk_size = chunk_size
        self.keyed = draw is not None
        self._batches = batches
        self._draw = draw
        self._passes = 0
        self._first_batch: list[Tensor] | None = None

    def rows(self, draw: int = 0) -> Iterator[Rows]:
        """One pass over the samples; another ``draw`` is another, independent set of random draws.

        Raises:
            ValueError: a second pass over batches that can be iterated only once.
        """
        if self._passes and isinstance(self._batches, Iterator):
            raise ValueError(
                "batches is an iterator and this estimator passes over the samples more than once; give a list or a "
                "DataLoader"
            )
        self._passes += 1
        device = next(self.model.parameters()).device
        torch.manual_seed(self.seed)  # a loader that shuffles takes its order from here, the same in every pass
        offset = 0
        for item in self._batches:
            batch, indices = item if isinstance(item, KeyedBatch) else (item, None)
            size = batch_size(batch)
            if size == 0:
                continue
            if indices is None:
                if offset == 0:
                    self._require_same_order(batch)
                indices = rank() + world_size() * torch.arange(offset, offset + size)
            offset += size
            batch = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
            if self._draw is None:
                yield Rows(batch, indices, int(derive_keys(self.seed, indices[:1], draw)))
            else:
                yield Rows(self._draw(batch, derive_keys(self.seed, indices, draw)), indices, None)

    def _require_same_order(self, batch: Any) -> None:
        """Refuse batches without indices that begin with other samples in another pass.

        Raises:
            ValueError: the first batch is not that of the first pass.
        """
        now = [leaf.detach().clone() for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
        before, self._first_batch = self._first_batch, now
        if before is not None and not all(map(_alike, before, now)):
            raise ValueError(
                "batches come in another order in each pass, and a sample without an index is known by its place "
                "alone; give a loader that does not shuffle by a generator of its own, or KeyedBatch(batch, indices)"
            )

    def restricted(self, label: Callable[[Any], Tensor], value: int) -> Population:
        """The samples whose drawn batch has this label (``label(batch) -> (B,)``), in batches of the usual size."""
        return _Restricted(self, label, value)


class _Restricted(Population):
    def __init__(self, whole: Population, label: Callable[[Any], Tensor], value: int) -> None:
        super().__init__(whole.model, whole.loss, (), seed=whole.seed, chunk_size=whole.chunk_size)
        self.keyed = whole.keyed
        self._whole = whole
        self._label = label
        self._value = value

    def rows(self, draw: int = 0) -> Iterator[Rows]:
        for label, rows in regrouped(self._whole.rows(draw), lambda rows: self._label(rows.batch)):
            if label == self._value:
                yield rows


def regrouped(passed: Iterable[Rows], label: Callable[[Rows], Tensor]) -> Iterator[tuple[int, Rows]]:
    """Samples gathered by label, in batches as large as those that came, so that few samples of a label cost no more.

    Batches that differ in anything but their samples (a shared tensor, a length) are not joined.
    """
    waiting: dict[int, list[Rows]] = {}
    for rows in passed:
        labels = label(rows).cpu()
        size = len(rows.indices)
        if labels.shape != (size,):
            raise ValueError(
                f"labels of {size} samples have shape {tuple(labels.shape)}; expected ({size},), one a sample"
            )
        for value in labels.unique().tolist():
            part = select(rows, labels == value)
            held = waiting.setdefault(value, [])
            if held and not joinable(held[0], part):
                yield value, joined(held)
                held.clear()
            held.append(part)
            if sum(len(piece.indices) for piece in held) >= size:
                whole = joined(held)
                held.clear()
                full = torch.arange(len(whole.indices)) < size
                if not bool(full.all()):
                    held.append(select(whole, ~full))
                yield value, select(whole, full)
    for value, held in waiting.items():
        if held:
            yield value, joined(held)


def select(rows: Rows, mask: Tensor) -> Rows:
    """The chosen samples; what has no axis of samples is kept as it is."""
    if bool(mask.all()):
        return rows
    leaves, structure = tree_flatten(rows.batch)
    size, chosen = len(rows.indices), mask.nonzero()[:, 0]
    parts = [leaf[chosen.to(leaf.device)] if has_samples(leaf, size) else leaf for leaf in leaves]
    return rows._replace(batch=tree_unflatten(parts, structure), indices=rows.indices[mask])


def joined(parts: list[Rows]) -> Rows:
    """Several batches as one."""
    if len(parts) == 1:
        return parts[0]
    flat = [tree_flatten(part.batch)[0] for part in parts]
    first = parts[0]
    leaves = [
        torch.cat(pieces) if has_samples(pieces[0], len(first.indices)) else pieces[0]
        for pieces in zip(*flat, strict=True)
    ]
    structure = tree_flatten(first.batch)[1]
    return Rows(tree_unflatten(leaves, structure), torch.cat([part.indices for part in parts]), parts[-1].reseed)


def joinable(a: Rows, b: Rows) -> bool:
    """Whether two batches differ in their samples alone."""
    (mine, mine_structure), (other, other_structure) = tree_flatten(a.batch), tree_flatten(b.batch)
    if mine_structure != other_structure:
        return False
    return all(_same_but_for_samples(x, len(a.indices), y, len(b.indices)) for x, y in zip(mine, other, strict=True))


def _same_but_for_samples(x: Any, x_size: int, y: Any, y_size: int) -> bool:
    if has_samples(x, x_size) != has_samples(y, y_size):
        return False
    if has_samples(x, x_size):
        return bool(x.shape[1:] == y.shape[1:] and x.dtype == y.dtype)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.dtype == y.dtype and torch.equal(x, y)
    return bool(x == y)


def _alike(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors hold the same, where no number is like no number."""
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
