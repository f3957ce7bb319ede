"""Per-sample gradients of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from cl_diffusion.fisher.layers.layer import LayerGradients
from cl_diffusion.linalg import Parameters


class EmbeddingGradients(LayerGradients):
    """Embeddings: a sample's output gradients, added up in the rows that it looked up."""

    @override
    def of(self, rows: slice) -> Parameters:
        table, indices = self.parameter("weight"), self.inputs[rows]
        indices = indices.reshape(len(indices), -1)
        d = self.output_gradients[rows].reshape(*indices.shape, table.shape[1])
        if self.padding is not None:
            d = d * (indices != self.padding)[..., None]
        gradients = d.new_zeros((len(indices), *table.shape))
        gradients.scatter_add_(1, indices[..., None].expand_as(d), d)
        return {self.names["weight"]: gradients}

    @override
    def projections(self, direction: Parameters) -> Tensor:
        table = direction[self.names["weight"]]
        if self.padding is not None:
            table = table.clone()
            table[self.padding] = 0
        along = functional.embedding(self.inputs, table)
        return (along * self.output_gradients).flatten(1).sum(1, dtype=torch.float64)

    @override
    def bounds(self) -> dict[str, float]:
        return {self.names["weight"]: float(self.output_gradients.abs().sum())}

    @property
    def padding(self) -> int | None:
        """The row that takes no gradient."""
        index: int | None = self.module.padding_idx  # type: ignore[assignment]
        return index
