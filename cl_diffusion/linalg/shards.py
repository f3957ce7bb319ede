"""Vectors of which each process holds a shard: torch's ``DTensor``, along one axis of one group of processes.

Arithmetic entry by entry is ``DTensor``'s own. What sums over entries sums over a process's own ones (``local``), then
over processes (``summed``). Whole tensors pass through everything here unchanged, at the price of a type check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._pytree import tree_map


def is_sharded(vector: Mapping[str, Tensor]) -> bool:
    """Whether this process holds shards of the vector's tensors.

    Raises:
        ValueError: of some of them only, or not along one axis of one group of processes.
    """
    found = {name: tensor for name, tensor in vector.items() if isinstance(tensor, DTensor)}
    if not found:
        return False
    meshes = {tensor.device_mesh for tensor in found.values()}
    odd = [name for name in vector if name not in found]
    odd += [name for name, t in found.items() if t.device_mesh.ndim != 1 or not isinstance(t.placements[0], Shard)]
    if odd or len(meshes) > 1:
        raise ValueError(
            f"parameters are sharded in more than one way ({', '.join(map(repr, odd[:3]))}); expected all of them to "
            "be sharded along one axis by one group of processes, as fully_shard(module, mesh=...) of the whole does"
        )
    return True


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without a graph: its shard, in place; a whole tensor itself."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def summed(total: Tensor, vectors: Iterable[Tensor]) -> Tensor:
    """``total`` summed over the processes that hold shards of ``vectors``, in place."""
    first = next(iter(vectors), None)
    if isinstance(first, DTensor):
        dist.all_reduce(total, group=first.device_mesh.get_group())
    return total


def largest(tensor: Tensor) -> float:
    """The largest entry of a tensor that has some and none below 0."""
    own = local(tensor)
    found = own.max() if own.numel() else own.new_zeros(())
    if isinstance(tensor, DTensor):
        dist.all_reduce(found, dist.ReduceOp.MAX, tensor.device_mesh.get_group())
    return float(found)


def dealt_as(mine: Tensor, like: Tensor) -> Tensor:
    """This process's part as one tensor with that of the others, sharded as ``like``, whose last axes it shares."""
    if not isinstance(like, DTensor):
        return mine
    (placement,) = like.placements
    assert isinstance(placement, Shard)  # refused by is_sharded
    axis = placement.dim + mine.ndim - like.ndim
    shape = torch.Size([like.shape[placement.dim] if i == axis else n for i, n in enumerate(mine.shape)])
    stride = torch.empty(shape, device="meta").stride()
    mine = mine.contiguous()
    found: Tensor = DTensor.from_local(
        mine, like.device_mesh, [Shard(axis)], run_check=False, shape=shape, stride=stride
    )
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def wholes(state: Any) -> Any:
    """The same structure with whole tensors, what was sharded on the CPU: no device holds more than one at a time."""
    return tree_map(lambda leaf: whole(leaf).cpu() if isinstance(leaf, DTensor) else leaf, state)


def dealt_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, as shards like those of ``like``, whose last axes it shares."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    (placement,) = like.placements
    assert isinstance(placement, Shard)  # refused by is_sharded
    axis = placement.dim + tensor.ndim - like.ndim
    on_device = tensor.to(like.device_mesh.device_type)
    found: Tensor = distribute_tensor(on_device, like.device_mesh, [Shard(axis)], src_data_rank=None)
    return found
