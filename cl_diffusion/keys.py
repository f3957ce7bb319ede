"""Random draws that belong to a sample, not to the order in which samples are visited.

The noise of sample ``i`` is a function of ``(seed, i, draw)``. An expectation over a data set is then the same for
every batch size, order, number of workers and number of processes.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class KeyedBatch(NamedTuple):
    """A batch and, for each of its samples, the index of that sample in its data set.

    ``batch`` is whatever the model is trained on; ``indices`` is an integer tensor of shape ``(B,)``.
    """

    batch: Any
    indices: Tensor


def derive_keys(seed: int, indices: Tensor, draw: int = 0, purpose: str = "") -> Tensor:
    """One 64-bit key a sample, distinct (up to hash collisions) for distinct ``(seed, index, draw, purpose)``.

    Args:
        seed: the seed of the whole pass.
        indices: integer tensor ``(B,)``, the samples' indices in their data set.
        draw: 0, 1, ...: independent repetitions over the same samples.
        purpose: draws for another purpose are independent of a sample's timestep and noise, whose purpose is ``""``.

    Returns:
        int64 tensor ``(B,)`` on the CPU. SplitMix64 finaliser (Steele, Lea & Flood 2014), applied once a field.
    """
    prefix = _mix(_mix(seed & _MASK) ^ (draw & _MASK))
    if purpose:
        prefix = _mix(prefix ^ zlib.crc32(purpose.encode()))
    keys = [_mix(prefix ^ (int(index) & _MASK)) for index in indices.tolist()]
    return torch.from_numpy(np.array(keys, dtype=np.uint64).view(np.int64))


def keyed_integers(keys: Tensor, high: int) -> Tensor:
    """Uniform integers in ``[0, high)``, one a key: int64 ``(B,)`` on the CPU."""
    return torch.tensor([int(_generator(key).integers(high)) for key in keys.tolist()], dtype=torch.int64)


def keyed_uniform(keys: Tensor) -> Tensor:
    """Uniform float64 in ``[0, 1)``, one a key: ``(B,)`` on the CPU."""
    return torch.tensor([_generator(key, stream=2).random() for key in keys.tolist()], dtype=torch.float64)


def keyed_normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 ``(B, *shape)`` on the CPU, row ``i`` a function of ``keys[i]`` alone.

    Independent of ``keyed_integers`` of the same keys: each kind of draw has a stream of its own.
    """
    rows = np.empty((len(keys), *shape), dtype=np.float32)
    for position, key in enumerate(keys.tolist()):
        rows[position] = _generator(key, stream=1).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(rows)


def _generator(key: int, stream: int = 0) -> np.random.Generator:
    """Philox (Salmon et al. 2011): a counter-based generator, made to be keyed."""
    return np.random.Generator(np.random.Philox(key=(stream << 64) | (key & _MASK)))


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
