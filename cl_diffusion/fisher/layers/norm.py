"""Per-sample gradients of norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from cl_diffusion.fisher.layers.layer import LayerGradients
from cl_diffusion.linalg import Parameters


class NormGradients(LayerGradients):
    """GroupNorm, LayerNorm, RMSNorm, evaluated BatchNorm: sums of output gradient times normalised input."""

    @override
    def of(self, rows: slice) -> Parameters:
        d = self.output_gradients[rows]
        result: Parameters = {}
        if "weight" in self.names:
            result[self.names["weight"]] = self._reduced(d * self._normalised(rows))
        if "bias" in self.names:
            result[self.names["bias"]] = self._reduced(d)
        return result

    @override
    def bounds(self) -> dict[str, float]:
        size = float(torch.linalg.vector_norm(self.output_gradients))
        width = next(self.parameter(local).numel() for local in self.names)
        ones = (self.output_gradients.numel() / width) ** 0.5
        normalised = float(torch.linalg.vector_norm(self._normalised(slice(None)))) if "weight" in self.names else 0.0
        return {name: size * (normalised if local == "weight" else ones) for local, name in self.names.items()}

    def _normalised(self, rows: slice) -> Tensor:
        plain = {n: torch.full_like(p, n != "bias") for n, p in self.module.named_parameters()}
        result: Tensor = functional_call(self.module, plain, (self.inputs[rows],))
        return result

    def _reduced(self, values: Tensor) -> Tensor:
        if isinstance(self.module, (nn.LayerNorm, nn.RMSNorm)):
            kept = len(self.module.normalized_shape)
            return values.reshape(len(values), -1, *values.shape[values.ndim - kept :]).sum(1)
        return values.flatten(2).sum(2) if values.ndim > 2 else values.clone()
