"""What several processes have seen, and what the first of them has drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_diffusion.fisher.population import world_size


def of_the_first(fresh: Tensor) -> Tensor:
    """The first process's, on all of them."""
    if world_size() > 1:
        fresh = fresh.contiguous()
        torch.distributed.broadcast(fresh, 0)
    return fresh


def all_processes(tensor: Tensor, largest: bool = False) -> Tensor:
    """Its sum over processes, or the largest entries."""
    if world_size() > 1:
        operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor, operation)
    return tensor


def summed(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Each number's sum over processes."""
    if world_size() == 1:
        return list(numbers)
    found: list[int] = all_processes(torch.tensor(numbers, device=device)).tolist()
    return found
