"""Gradients of a per-sample loss: one a sample, and the sums over samples that need none of them singly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cl_diffusion.fisher.batch import a_few, batch_size, reseed
from cl_diffusion.fisher.capture import visit_layers
from cl_diffusion.fisher.layers import LayerGradients
from cl_diffusion.fisher.layers.layer import in_single
from cl_diffusion.fisher.losses import Loss, Losses, taken_by
from cl_diffusion.fisher.per_sample import by_backward, by_vmap
from cl_diffusion.fisher.sharded import backward_sums, require_means
from cl_diffusion.fisher.verified_layers import VerifiedLayers
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.linalg.shards import is_sharded


class LossGradients:
    """Gradients ``g_i`` of ``loss(model, batch) -> (B,)`` with respect to the model's trainable parameters.

    Two ways lead to them. *Layers*: one ordinary forward and backward to the outputs of linear, convolutional, norm and
    embedding layers, from which their parameters' per-sample gradients are small products. *Batched derivative*:
    ``vmap(grad)``, which takes any parameter of any model and costs several times as much. A parameter goes by its
    layer where that was verified: on a few samples, a random weighted sum of its per-sample gradients must agree with
    an ordinary backward of the weighted sum of losses to rounding. Where there is hardly a gradient, the next batch
    is asked. A loss that is ``OneByOne`` goes neither way: its gradients are taken by an ordinary backward a sample.

    Nothing of the model changes: no ``.grad`` is written, no buffer updated. Of sharded parameters (``fully_shard``)
    there are sums alone.

    Args:
        model: any module; parameters that require no gradient are left out.
        loss: one entry a sample. A sample's loss must not depend on the other samples of its batch; tensors of a batch
            whose leading axis is as long as the first tensor's are taken to hold one entry a sample, others are shared.
        chunk_size: so many single gradients are held at a time; by default as many as fit ``memory_budget``.
        memory_budget: bytes of per-sample gradients held at once.
        select: which of the trainable parameters to take, by name; None is all.

    Raises:
        ValueError: no parameter is left, or ``chunk_size`` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        chunk_size: int | None = None,
        memory_budget: int = 128 * 2**20,
        select: Callable[[str], bool] | None = None,
    ) -> None:
        trainable = parameters.trainable_parameters(model)
        if not trainable:
            raise ValueError(f"model={type(model).__name__} has no parameter that requires a gradient; unfreeze some")
        self.parameters: Parameters = {n: p for n, p in trainable.items() if select is None or select(n)}
        if not self.parameters:
            shown = ", ".join(list(trainable)[:3]) + (", ..." if len(trainable) > 3 else "")
            raise ValueError(
                f"none of the {len(trainable)} trainable parameters ({shown}) is selected; widen include, or narrow "
                "exclude"
            )
        parameters.require_real(self.parameters)
        self.sharded = is_sharded(self.parameters)
        self._every = list(model.parameters())  # as shards: within a forward some are whole
        if self.sharded:
            require_means(model)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size!r}; expected at least 1 sample, or None")
        self._model = model
        self._losses = Losses(model, loss)
        self._given_chunk_size = chunk_size
        self._memory_budget = memory_budget
        self._singly = getattr(loss, "singly", False)
        self._verified = VerifiedLayers(model, self.parameters)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which gradients are computed."""
        return next(iter(self.parameters.values())).dtype

    def per_sample(self, batch: Any, names: frozenset[str] | None = None) -> Iterator[Parameters]:
        """``g_i`` of each sample by itself, in chunks: each tensor has a leading axis of samples."""
        weights = {n: p for n, p in self.parameters.items() if names is None or n in names}
        step = self._chunk_size(weights)
        reseed(batch)
        yield from (by_backward if self._singly else by_vmap)(self._call, weights, batch, step)

    def summed(self, batch: Any, weights: Tensor | None = None) -> Parameters:
        """``sum_i w_i g_i`` over the batch, by one ordinary backward; ``w`` of shape ``(B,)``, None is ones.

        Where parameters are sharded, over the batches of all processes.
        """
        if self._singly:
            return self._summed_singly(batch, weights)
        if self.sharded:
            with torch.enable_grad():
                losses = self.losses(batch)
            weights = torch.ones_like(losses) if weights is None else weights.to(losses)
            return backward_sums(losses, weights, self.parameters, self._every)
        with torch.enable_grad():
            losses = self.losses(batch)
        if not losses.requires_grad:  # none of the parameters takes part
            return {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        weights = torch.ones_like(losses) if weights is None else weights.to(losses)
        gradients = torch.autograd.grad(losses, list(self.parameters.values()), weights, materialize_grads=True)
        return dict(zip(self.parameters, gradients, strict=True))

    def summed_squares(self, batch: Any) -> Parameters:
        """``sum_i g_i * g_i`` over the batch, of per-sample gradients."""
        return self._summed_entries(batch, lambda layer: layer.summed_squares(), torch.square)

    def summed_absolute(self, batch: Any) -> Parameters:
        """``sum_i |g_i|`` over the batch, of per-sample gradients."""
        return self._summed_entries(batch, lambda layer: layer.summed_absolute(), torch.abs)

    def projections(self, batch: Any, direction: Parameters) -> Tensor:
        """``g_i^T v`` of each sample: float64 ``(B,)``."""
        total = torch.zeros(batch_size(batch), dtype=torch.float64, device=self.device)

        def add(layer: LayerGradients) -> None:
            total.add_(layer.projections(direction))

        rest = self.visit_layers(batch, add)
        return total + self._projections_of_each(batch, direction, rest) if rest else total

    def products(self, batch: Any, direction: Parameters) -> Parameters:
        """``sum_i g_i (g_i^T v)`` over the batch: the empirical second moment times ``v``."""
        layers: list[LayerGradients] = []
        rest = self.visit_layers(batch, layers.append)
        if not layers:
            return self._products_of_each(batch, direction)
        scales = torch.zeros(batch_size(batch), dtype=torch.float64, device=self.device)
        for layer in layers:
            scales += layer.projections(direction)
        if rest:
            scales += self._projections_of_each(batch, direction, rest)
            return self.summed(batch, scales)
        totals = {name: g for layer in layers for name, g in layer.weighted_sum(scales.to(self.dtype)).items()}
        return {name: totals[name] for name in self.parameters}

    def losses(self, batch: Any) -> Tensor:
        """The loss of each sample, ``(B,)``, differentiable in the parameters.

        Raises:
            RuntimeError: the model does not take the batch; the message says what it holds.
        """
        reseed(batch)
        with taken_by(self._model, batch):
            return self._call(self.parameters, batch)

    def visit_layers(self, batch: Any, visit: Callable[[LayerGradients], None]) -> frozenset[str]:
        """Show the layers whose per-sample gradients were verified, one after the other; the names of all others."""
        if self._singly:
            return frozenset(self.parameters)
        if self._verified.undecided:
            few = a_few(batch)
            self._verified.decide(few, lambda: self.losses(few), lambda weights: self.summed(few, weights))
        if not self._verified.names:
            return frozenset(self.parameters)
        wanted = {name: self.parameters[name] for name in self._verified.names}
        shown = visit_layers(self._model, lambda: self.losses(batch), wanted, batch_size(batch), visit)
        return frozenset(self.parameters) - shown

    def _summed_singly(self, batch: Any, weights: Tensor | None) -> Parameters:
        """``sum_i w_i g_i`` with the graph of one sample at a time."""
        totals = {name: in_single(torch.zeros_like(p)) for name, p in self.parameters.items()}
        factors = [1.0] * batch_size(batch) if weights is None else weights.tolist()
        reseed(batch)
        singles = by_backward(self._call, self.parameters, batch, step=1)
        for factor, g in zip(factors, singles, strict=True):
            for name, total in totals.items():
                total.add_(g[name][0], alpha=factor)
        return totals

    def _summed_entries(
        self, batch: Any, of_layer: Callable[[LayerGradients], Parameters], of_entries: Callable[[Tensor], Tensor]
    ) -> Parameters:
        """The sum over samples of a function of the entries of their gradients."""
        totals: Parameters = {}
        rest = self.visit_layers(batch, lambda layer: totals.update(of_layer(layer)))
        for chunk in self.per_sample(batch, rest) if rest else ():
            for name, g in chunk.items():
                part = of_entries(g).sum(0)
                totals[name] = totals[name].add_(part) if name in totals else part
        return {name: totals[name] for name in self.parameters}

    def _projections_of_each(self, batch: Any, direction: Parameters, names: frozenset[str]) -> Tensor:
        return torch.cat([_dots(chunk, direction) for chunk in self.per_sample(batch, names)])

    def _products_of_each(self, batch: Any, direction: Parameters) -> Parameters:
        """``sum_i g_i (g_i^T v)`` in one pass, for single gradients are at hand."""
        totals = {name: in_single(torch.zeros_like(p)) for name, p in self.parameters.items()}
        for chunk in self.per_sample(batch):
            scales = _dots(chunk, direction)
            for name, total in totals.items():
                g = in_single(chunk[name])
                total.add_(torch.tensordot(scales.to(g), g, dims=1))
        return totals

    def _call(self, weights: Parameters, batch: Any) -> Tensor:
        return self._losses.at({} if self.sharded else weights, batch)

    def _chunk_size(self, weights: Parameters) -> int:
        bytes_a_sample = sum(p.numel() * p.element_size() for p in weights.values())
        return self._given_chunk_size or max(1, self._memory_budget // max(1, bytes_a_sample))


def _dots(gradients: Parameters, direction: Parameters) -> Tensor:
    """``g_i^T v`` of gradients on a leading axis, float64."""
    dots = [parameters.flat_rows(g) @ direction[name].reshape(-1) for name, g in gradients.items()]
    return torch.stack(dots).sum(0, dtype=torch.float64)
