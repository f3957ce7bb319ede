"""The interface of one layer's per-sample gradients.

A sample's gradient of a linear or convolutional weight is one small matrix product of the layer's input and the
gradient at its output, of a norm or an embedding a sum. So the gradients of all samples follow from *one ordinary
backward* to the layers' outputs, and quantities that need no single gradient (squares summed over samples, projections,
weighted sums) never hold more than a cacheful of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_diffusion.linalg import Parameters

CACHE = 4 * 2**20
"""Bytes of per-sample gradients of one layer held while they are summed: about what stays in cache."""


def in_single(tensor: Tensor) -> Tensor:
    """In single precision where it has less: sums of many half-precision numbers are none."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class LayerGradients(ABC):
    """The gradients of one layer's parameters, one a sample.

    The layer's output is linear in its parameters, and a sample's output depends on that sample's input alone.

    Args:
        module: the layer.
        names: full names of its trainable parameters, by their names in the module (``weight``, ``bias``).
        inputs: what the layer was called with, ``(B, ...)``.
        output_gradients: the gradient of each sample's loss at its output, ``(B, ...)``.
    """

    def __init__(self, module: nn.Module, names: dict[str, str], inputs: Tensor, output_gradients: Tensor) -> None:
        self.module = module
        self.names = names
        self.inputs = inputs
        self.output_gradients = output_gradients

    @abstractmethod
    def of(self, rows: slice) -> Parameters:
        """The gradients of some samples, by full name: ``(b, *parameter shape)``."""

    @abstractmethod
    def bounds(self) -> dict[str, float]:
        """A bound of the norm of any sum with weights in [-1, 1], by full name: the scale of its rounding error."""

    def summed_squares(self) -> Parameters:
        """``sum_i g_i * g_i``, by full name."""
        return self._summed(lambda g, rows: g.square_().sum(0))

    def summed_absolute(self) -> Parameters:
        """``sum_i |g_i|``, by full name."""
        return self._summed(lambda g, rows: g.abs_().sum(0))

    def summed_one_by_one(self, weights: Tensor) -> Parameters:
        """``sum_i w_i g_i`` of the single gradients, by full name: ``weighted_sum`` the long way."""
        return self._summed(lambda g, rows: torch.tensordot(weights[rows].to(g), g, dims=1))

    def projections(self, direction: Parameters) -> Tensor:
        """``g_i^T v``, float64 ``(B,)``: the output gradient times the layer's output with ``v`` for its parameters."""
        weights = {local: direction[name] for local, name in self.names.items()}
        zeros = {n: torch.zeros_like(p) for n, p in self.module.named_parameters() if n not in weights}
        along: Tensor = functional_call(self.module, {**weights, **zeros}, (self.inputs,))
        return (along * self.output_gradients).flatten(1).sum(1, dtype=torch.float64)

    def weighted_sum(self, weights: Tensor) -> Parameters:
        """``sum_i w_i g_i`` for ``w`` of shape ``(B,)``, by full name."""
        with torch.enable_grad():
            own = {local: self.parameter(local).detach().requires_grad_() for local in self.names}
            output = functional_call(self.module, own, (self.inputs,))
        cotangent = self.output_gradients * weights.view(-1, *[1] * (self.output_gradients.ndim - 1))
        gradients = torch.autograd.grad(output, list(own.values()), cotangent)
        return dict(zip(self.names.values(), gradients, strict=True))

    def _summed(self, summand: Callable[[Tensor, slice], Tensor]) -> Parameters:
        """The sum over samples of a function of their gradients, a cacheful at a time."""
        size = sum(self.parameter(local).numel() * self.inputs.element_size() for local in self.names)
        step = max(1, CACHE // size)
        totals: Parameters = {}
        for start in range(0, len(self.inputs), step):
            rows = slice(start, start + step)
            for name, g in self.of(rows).items():
                part = summand(in_single(g), rows)
                totals[name] = totals[name].add_(part) if name in totals else part
        return totals

    def parameter(self, local: str) -> Tensor:
        """The module's parameter of that name."""
        value: Tensor = self.module.get_parameter(local)
        return value
