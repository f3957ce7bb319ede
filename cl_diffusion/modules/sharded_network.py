"""A network whose parameters are dealt out among processes (FSDP2)."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_network(network: nn.Module, mesh: DeviceMesh | None) -> None:
    """Have each process of the mesh's ``data_parallel`` axis hold a shard of every parameter, in place.

    The blocks of the network's lists are gathered one at a time, as they are passed through; what is in no list is
    gathered with the network. Nothing happens without a mesh, or to a network that is sharded already.
    """
    if mesh is None or isinstance(network, FSDPModule):
        return
    along = mesh["data_parallel"]
    for child in network.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=along)
    fully_shard(network, mesh=along)
