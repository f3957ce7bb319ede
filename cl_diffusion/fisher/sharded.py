"""Gradients of a model of which each process holds a shard (``torch.distributed.fsdp.fully_shard``).

An ordinary backward leaves in ``.grad`` the mean over processes, of this process's shard. So a sum over samples is one
over the samples of all processes at once, and each process has to take part in each: they go through their batches in
lockstep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cl_diffusion.linalg import Parameters
from cl_diffusion.linalg.shards import local
from cl_diffusion.processes import gathered_objects

if TYPE_CHECKING:
    from cl_diffusion.fisher.drawn import Drawn


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


def backward_sums(
    losses: Tensor, weights: Tensor, parameters: Mapping[str, Tensor], every: Sequence[Tensor]
) -> Parameters:
    """``sum_i w_i g_i`` over the samples of all processes, in shards.

    Args:
        losses: ``(B,)``, of this process's samples.
        weights: ``(B,)``.
        parameters: whose gradients are asked for.
        every: parameter of the model, as shards: a backward writes the ``.grad`` of all of them, which is put back.
    """
    before = [parameter.grad for parameter in every]
    try:
        for parameter in every:
            parameter.grad = None
        losses.backward(weights)
        named = parameters.items()
        return {name: torch.zeros_like(p) if p.grad is None else _times_processes(p.grad) for name, p in named}
    finally:
        for parameter, gradient in zip(every, before, strict=True):
            parameter.grad = gradient


def require_means(model: nn.Module) -> None:
    """Refuse a sharded model whose backward would leave something else than the mean over processes of its own loss.

    Raises:
        ValueError: names what was set.
    """
    for module, group in _parameter_groups(model):
        found = {
            "set_gradient_divide_factor": group.gradient_divide_factor is not None,
            "set_requires_gradient_sync(False)": not group.reduce_grads,
            "accumulated gradients that are not reduced yet": any(
                parameter.unsharded_accumulated_grad is not None for parameter in group.fsdp_params
            ),
        }
        if wrong := [what for what, is_so in found.items() if is_so]:
            raise ValueError(
                f"{type(module).__name__} is sharded with {wrong[0]}, and a Fisher takes what a backward leaves for "
                "the mean over processes; undo it before the pass (at a task's end, a step must have been taken)"
            )


def in_lockstep(passed: Iterator[Drawn]) -> Iterator[Drawn]:
    """This process's batches, and where others have more, its last one again as a stand-in for no samples.

    Raises:
        ValueError: a process has no samples at all.
    """
    last: Drawn | None = None
    while True:
        drawn = next(passed, None)
        more, some = zip(*gathered_objects((drawn is not None, drawn is not None or last is not None)), strict=True)
        if not any(more):
            return
        if not all(some):
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
    if any(gathered_objects(bool(bad))):
        where = f"in parameter {bad[0]!r}" if bad else "in a shard of another process"
        raise FloatingPointError(
            f"a sum of gradients is not finite, first {where}; check the samples, or whether training has diverged"
        )


def _parameter_groups(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Each sharded part, and what torch keeps of its parameters: one group, or in a newer version several."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
            yield from ((module, group) for group in groups if group is not None)


def _times_processes(gradient: Tensor) -> Tensor:
    return gradient * gradient.device_mesh.size() if isinstance(gradient, DTensor) else gradient
