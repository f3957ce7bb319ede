"""One forward and one backward to the layers' outputs: what per-sample gradients of layers are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from cl_diffusion.fisher.layers import AffineGradients, EmbeddingGradients, LayerGradients, NormGradients
from cl_diffusion.linalg import parameters


class _Call:
    """A call of a layer in the forward pass, until the gradient at its output is known."""

    def __init__(self, leaf: type[LayerGradients], module: nn.Module, names: dict[str, str], inputs: Tensor) -> None:
        self.names = names
        self._leaf = leaf
        self._module = module
        self._inputs: Tensor | None = inputs.detach()

    def gradients(self, output_gradient: Tensor) -> LayerGradients:
        """Of the layer; the input is let go, for the graph lives until the end of the backward."""
        inputs, self._inputs = self._inputs, None
        assert inputs is not None
        return self._leaf(self._module, self.names, inputs, output_gradient)


def visit_layers(
    model: nn.Module,
    losses: Callable[[], Tensor],
    names: Mapping[str, Tensor],
    samples: int,
    visit: Callable[[LayerGradients], None],
) -> frozenset[str]:
    """Show every layer that is understood to ``visit``, during one ordinary forward and backward of ``losses()``.

    A layer is shown as soon as the gradient at its output is known, so that no more than one need be held. Left out are
    parameters of other modules, those used by several calls, and layers whose leading axis is not the samples. What is
    shown is to be verified: a leading axis can have the right length by chance, and a parameter can be used outside its
    module as well.

    Args:
        model: whose modules are watched while ``losses`` runs.
        losses: one entry a sample.
        names: the parameters that are wanted, by full name.
        samples: ``B``.
        visit: called once a layer.

    Returns:
        The names of the parameters that were shown.
    """
    trainable = {id(p): name for name, p in parameters.trainable_parameters(model).items()}
    uses: Counter[str] = Counter()
    sources: list[Any] = []
    shown: set[str] = set()

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        leaf = _leaf(module)
        mine = {local: trainable[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in trainable}
        if leaf is None or not mine or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        has_samples = isinstance(output, Tensor) and args[0].shape[:1] == output.shape[:1] == (samples,)
        if not has_samples or not output.requires_grad:
            return
        uses.update(mine.values())
        if not args[0].requires_grad:
            sources.append(get_gradient_edge(output))  # of the output as it is now, whatever is done to it in place
        if wanted := {local: name for local, name in mine.items() if name in names}:
            call = _Call(leaf, module, wanted, args[0])
            output.register_hook(lambda gradient: show(call, gradient))

    def show(call: _Call, gradient: Tensor) -> None:
        layer = call.gradients(gradient)
        if all(uses[name] == 1 for name in call.names.values()):
            shown.update(call.names.values())
            visit(layer)

    with torch.enable_grad(), _watched(model, record):
        total = losses().sum()
    # All that needs a gradient descends from a parameter: of a watched layer, which is a source or lies behind another
    # one, or of those left here. With sources and the rest for its ends, a backward passes through every output.
    ends = [*sources, *(p for p in model.parameters() if id(p) in trainable and trainable[id(p)] not in uses)]
    sources.clear()
    if ends and total.requires_grad:
        torch.autograd.grad(total, ends, allow_unused=True)
    return frozenset(shown)


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
    """Which kind of layer a module is; None where none fits, or where its weight is not a parameter of its own."""
    if module._parameters.get("weight") is None:
        return None
    if isinstance(module, nn.Linear):
        return AffineGradients
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return AffineGradients if plain else None
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return NormGradients
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return NormGradients if module.track_running_stats and not module.training else None
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return EmbeddingGradients if plain else None
    return None
