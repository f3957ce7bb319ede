"""Permutations that belong to a key, not to the state of a random number generator."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from cl_diffusion.keys import derive_keys


class Purpose(IntEnum):
    """What a permutation decides; those of different purposes are independent."""

    EPOCH = 0
    HOLDOUT = 1
    FRACTION = 2
    IMPORTANCE = 3
    CLASS_ORDER = 4
    BUFFER = 5
    REPLAY = 6
    GENERATION = 7
    LIMIT = 8
    CHANGE = 9


def keyed_permutation(length: int, seed: int, purpose: Purpose, index: int = 0) -> Tensor:
    """A uniform permutation of ``0 .. length - 1``, a function of ``(length, seed, purpose, index)`` alone.

    Returns:
        int64 tensor ``(length,)``. The global random state is neither read nor advanced.
    """
    return torch.randperm(length, generator=keyed_generator(seed, purpose, index))


def keyed_generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """A generator whose state is a function of ``(seed, purpose, index)``."""
    key = derive_keys(seed, torch.tensor([index]), draw=purpose)
    return torch.Generator().manual_seed(int(key))
