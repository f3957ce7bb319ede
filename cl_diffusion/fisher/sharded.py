"""Gradients of a model of which each process holds a shard (``torch.distributed.fsdp.fully_shard``).

An ordinary backward leaves in ``.grad`` the mean over processes, of this process's shard. So a sum over samples is one
over the samples of all processes at once, and each process has to take part in each: they go through their batches in
lockstep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cl_diffusion.linalg import Parameters
from cl_diffusion.linalg.shards import local

if TYPE_CHECKING:
    from cl_diffusion.fisher.samples import Drawn


def reshard(model: nn.Module) -> None:
    """Have a sharded model's parameters be shards again: a forward without a backward leaves some of them whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """A sharded model's parameters are shards inside, and again on leaving."""
    reshard(model)
    try:
        yield
    finally:
        reshard(model)


def backward_sums(losses: Tensor, weights: Tensor, parameters: Mapping[str, Tensor]) -> Parameters:
    """``sum_i w_i g_i`` over the samples of all processes, in shards; ``.grad`` is left as found."""
    named = list(parameters.items())
    before = [parameter.grad for _, parameter in named]
    try:
        for _, parameter in named:
            parameter.grad = None
        losses.backward(weights)
        return {name: torch.zeros_like(p) if p.grad is None else _times_processes(p.grad) for name, p in named}
    finally:
        for (_, parameter), gradient in zip(named, before, strict=True):
            parameter.grad = gradient


def in_lockstep(passed: Iterator[Drawn]) -> Iterator[Drawn]:
    """This process's batches, and where others have more, its last one again as a stand-in for no samples.

    Raises:
        ValueError: a process has no samples at all.
    """
    last: Drawn | None = None
    while True:
        drawn = next(passed, None)
        anything, nothing = _anywhere(drawn is not None), _anywhere(drawn is None and last is None)
        if not anything:
            return
        if nothing:
            raise ValueError(
                "a process has no samples, and a sharded model is passed over by all processes together; give each of "
                "them at least one batch, or use fewer processes"
            )
        if drawn is None:
            assert last is not None
            yield last._replace(num_samples=0.0)
        else:
            last = drawn
            yield drawn


def require_finite_everywhere(vector: Parameters) -> None:
    """Refuse a sum of gradients that is not finite, on every process alike.

    Raises:
        FloatingPointError: names the first bad parameter of this process, if it is here.
    """
    bad = [name for name, tensor in vector.items() if not bool(local(tensor).isfinite().all())]
    if _anywhere(bool(bad)):
        where = f"in parameter {bad[0]!r}" if bad else "in a shard of another process"
        raise FloatingPointError(
            f"a sum of gradients is not finite, first {where}; check the samples, or whether training has diverged"
        )


def _times_processes(gradient: Tensor) -> Tensor:
    return gradient * gradient.device_mesh.size() if isinstance(gradient, DTensor) else gradient


def _anywhere(here: bool) -> bool:
    flag = torch.tensor([float(here)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag)
    return bool(flag > 0)
