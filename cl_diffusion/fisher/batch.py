"""A batch as a tree of tensors whose leading axis is the samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map


def batch_size(batch: Any) -> int:
    """The number of samples: the leading axis of the batch's first tensor that has one.

    Raises:
        ValueError: the batch holds no tensor with an axis.
    """
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf)
    raise ValueError(f"batch={type(batch).__name__} holds no tensor with an axis of samples")


def has_samples(leaf: Any, size: int) -> bool:
    """Whether a leaf of a batch of ``size`` samples holds one entry a sample."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size


def rows(batch: Any) -> Iterator[Any]:
    """The batch cut into batches of one; what has no axis of samples is in each."""
    size = batch_size(batch)
    for i in range(size):
        yield tree_map(lambda leaf, i=i: leaf[i : i + 1] if has_samples(leaf, size) else leaf, batch)


def a_few(batch: Any) -> Any:
    """3 to 8 samples of the batch; where it has fewer, repeated with other numbers, for they must differ to be told."""
    size = batch_size(batch)
    rows = torch.arange(min(max(size, 3), 8)) % size

    def few(leaf: Any) -> Any:
        if not has_samples(leaf, size):
            return leaf
        chosen = leaf[rows.to(leaf.device)]
        if size >= len(rows) or not leaf.is_floating_point():
            return chosen
        scale = 1 + 0.1 * torch.arange(len(rows), device=leaf.device, dtype=leaf.dtype)
        return chosen * scale.view(-1, *[1] * (leaf.ndim - 1))

    return tree_map(few, batch)


def described(batch: Any) -> str:
    """The type and shape of each tensor of a batch, in words."""
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    return ", ".join(f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}" for leaf in tensors)


def reseed(batch: Any) -> None:
    """Seed torch's generator as the batch says, for a loss that draws for itself."""
    if (seed := getattr(batch, "reseed", None)) is not None:
        torch.manual_seed(seed)
