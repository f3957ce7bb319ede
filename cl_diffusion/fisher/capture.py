"""One forward and one backward to the layers' outputs: what per-sample gradients of layers are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cl_diffusion.fisher.layers import AffineGradients, EmbeddingGradients, LayerGradients, NormGradients


class _Call(NamedTuple):
    leaf: type[LayerGradients]
    module: nn.Module
    names: dict[str, str]
    inputs: Tensor
    output: Tensor


def layer_gradients(
    model: nn.Module, losses: Callable[[], Tensor], names: Mapping[str, Tensor], samples: int
) -> list[LayerGradients]:
    """The gradients of every layer that is understood, from one ordinary forward and backward of ``losses()``.

    Left out are parameters of other modules, those used outside their module or by several calls, and layers whose
    leading axis is not the samples: what is returned is to be verified, for a leading axis can have the right length by
    chance.

    Args:
        model: whose modules are watched while ``losses`` runs.
        losses: one entry a sample.
        names: the parameters that are wanted, by full name.
        samples: ``B``.
    """
    known = {id(parameter): name for name, parameter in names.items()}
    calls: list[_Call] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        leaf = _leaf(module)
        mine = {local: known[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in known}
        if leaf is None or not mine or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        has_samples = isinstance(output, Tensor) and args[0].shape[:1] == output.shape[:1] == (samples,)
        if has_samples and output.requires_grad:
            calls.append(_Call(leaf, module, mine, args[0].detach(), output))

    with torch.enable_grad(), _watched(model, record):
        total = losses().sum()
    uses = Counter(name for call in calls for name in call.names.values())
    calls = [call for call in calls if all(uses[name] == 1 for name in call.names.values())]
    if not calls:
        return []
    gradients = torch.autograd.grad(total, [call.output for call in calls], materialize_grads=True)
    return [
        call.leaf(call.module, call.names, call.inputs, gradient)
        for call, gradient in zip(calls, gradients, strict=True)
    ]


@contextmanager
def _watched(model: nn.Module, record: Callable[[nn.Module, Any, Any, Any], None]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if _leaf(module) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaf(module: nn.Module) -> type[LayerGradients] | None:
    """Which kind of layer a module is; None where none fits."""
    if isinstance(module, nn.Linear):
        return AffineGradients
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return AffineGradients if plain else None
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return NormGradients
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return NormGradients if module.track_running_stats else None
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return EmbeddingGradients if plain else None
    return None
