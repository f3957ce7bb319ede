"""What several processes tell each other; one alone tells itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Gathered = TypeVar("Gathered")


def rank() -> int:
    """This process's number; 0 where there is one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the samples."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered_objects(mine: Gathered) -> list[Gathered]:
    """A small object of each process, in the order of the processes."""
    if world_size() == 1:
        return [mine]
    parts = [mine] * world_size()
    dist.all_gather_object(parts, mine)
    return parts


def gathered(values: Tensor) -> Tensor:
    """The numbers (a few a sample, on the CPU) of all processes, in the order of the processes."""
    return torch.cat(gathered_objects(values))


def of_the_first(fresh: Tensor) -> Tensor:
    """The first process's, on all of them."""
    if world_size() > 1:
        fresh = fresh.contiguous()
        dist.broadcast(fresh, 0)
    return fresh


def all_processes(tensor: Tensor, largest: bool = False) -> Tensor:
    """Its sum over processes, or the largest entries; written into the tensor itself where that is contiguous."""
    if world_size() > 1:
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def summed(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Each number's sum over processes."""
    if world_size() == 1:
        return list(numbers)
    found: list[int] = all_processes(torch.tensor(numbers, device=device)).tolist()
    return found
