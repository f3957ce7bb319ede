"""The samples of one estimate: batches on the model's device, their draws, and sums over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from cl_diffusion.fisher.gradient import LossGradients, batch_size, take
from cl_diffusion.keys import KeyedBatch, derive_keys

Draw = Callable[[Any, Tensor], Any]


class DrawnSamples(NamedTuple):
    """A batch whose random draws are made, and the index of each of its samples."""

    batch: Any
    indices: Tensor


class Samples:
    """The samples over which an importance operator is an expectation.

    Args:
        gradients: of the model and its loss.
        batches: this process's share; ``KeyedBatch`` where samples have indices, else a sample's index is its position
            (strided over processes, as a ``DistributedSampler`` deals them).
        draw: ``draw(batch, keys) -> batch`` makes all random draws beforehand, a function of the keys alone. Without it
            torch's global generator is seeded anew for each batch, and the operator is marked unkeyed.
        seed: of the draws.
    """

    def __init__(
        self, gradients: LossGradients, batches: Iterable[Any], draw: Draw | None = None, seed: int = 0
    ) -> None:
        self.gradients = gradients
        self.seed = seed
        self.keyed = draw is not None
        self._batches = batches
        self._draw = draw
        self._passes = 0

    def drawn(self, draw: int = 0) -> Iterator[DrawnSamples]:
        """One pass over the samples; another ``draw`` is another, independent set of random draws.

        Raises:
            ValueError: a second pass over batches that can be iterated only once.
        """
        if self._passes and isinstance(self._batches, Iterator):
            raise ValueError(
                "batches is an iterator and this estimator passes over the samples twice; give a list or a DataLoader"
            )
        self._passes += 1
        offset = 0
        for item in self._batches:
            batch, indices = item if isinstance(item, KeyedBatch) else (item, None)
            if indices is None:
                indices = _rank() + _world_size() * torch.arange(offset, offset + batch_size(batch))
            offset += batch_size(batch)
            batch = tree_map(self._to_device, batch)
            if self._draw is not None:
                batch = self._draw(batch, derive_keys(self.seed, indices, draw))
            else:
                torch.manual_seed(int(derive_keys(self.seed, indices[:1], draw)))
            yield DrawnSamples(batch, indices)

    def halves(self, samples: DrawnSamples) -> tuple[DrawnSamples, DrawnSamples]:
        """Two disjoint random halves, a function of (seed, index): a sample is in the same half in every pass."""
        odd = derive_keys(self.seed, samples.indices, draw=-1).remainder(2) == 1
        return self._rows(samples, ~odd), self._rows(samples, odd)

    def require_finite(self, vector: Mapping[str, Tensor], samples: DrawnSamples) -> None:
        """Refuse a sum of gradients that is not finite.

        Raises:
            FloatingPointError: names the sample and the first bad parameter.
        """
        if all(bool(tensor.isfinite().all()) for tensor in vector.values()):
            return
        position = 0
        for gradients in self.gradients.per_sample(samples.batch):
            finite = {name: g.flatten(1).isfinite().all(1) for name, g in gradients.items()}
            bad = ~torch.stack(list(finite.values())).all(0)
            if bad.any():
                row = int(bad.nonzero()[0, 0])
                name = next(name for name, rows in finite.items() if not rows[row])
                raise FloatingPointError(
                    f"the gradient of sample {int(samples.indices[position + row])} is not finite, first in parameter "
                    f"{name!r}; check that sample, or whether training has diverged"
                )
            position += len(bad)
        name = next(name for name, tensor in vector.items() if not tensor.isfinite().all())
        raise FloatingPointError(
            f"a sum of finite gradients overflows in parameter {name!r}; check whether training has diverged"
        )

    def all_reduce(self, sums: Mapping[str, Tensor]) -> None:
        """Sum each tensor over all processes, in place; nothing to do in a single one."""
        if _world_size() > 1:
            for tensor in sums.values():
                dist.all_reduce(tensor)

    def _rows(self, samples: DrawnSamples, rows: Tensor) -> DrawnSamples:
        batch = take(samples.batch, rows.nonzero()[:, 0].to(self.gradients.device))
        return DrawnSamples(batch, samples.indices[rows])

    def _to_device(self, leaf: Any) -> Any:
        return leaf.to(self.gradients.device) if isinstance(leaf, Tensor) else leaf


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
