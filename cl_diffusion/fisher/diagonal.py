"""The diagonal of the empirical Fisher."""

from __future__ import annotations

import torch
from typing_extensions import override

from cl_diffusion.fisher.estimator import FisherEstimator, require_samples
from cl_diffusion.fisher.gradient import batch_size
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Diagonal, Operator


class DiagonalFisher(FisherEstimator):
    """``f = (1/n) sum_i g_i * g_i``: the diagonal of the empirical Fisher ``E[g g^T]``, of per-sample gradients.

    Not the squared gradient of a batch, which is another matrix (van de Ven 2025, 2502.11756, names it BATCHED), and
    not the Fisher information (Kunstner et al. 2019, 1905.12558). One pass, ``vmap(grad)`` in chunks.

    Args:
        dtype: of the sums over samples; the operator has the parameters' own type.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    @override
    def identity(self) -> dict[str, str]:
        return {"estimator": "diagonal", "residual": "empirical"}

    @override
    def compute(self, samples: Samples) -> tuple[Operator, dict[str, float]]:
        weights = samples.gradients.parameters
        squares = {name: torch.zeros_like(weight, dtype=self.dtype) for name, weight in weights.items()}
        count = torch.zeros((), dtype=torch.float64, device=samples.gradients.device)
        for drawn in samples.drawn():
            for gradients in samples.gradients.per_sample(drawn.batch):
                chunk = {name: g.square().sum(0, dtype=self.dtype) for name, g in gradients.items()}
                samples.require_finite(chunk, drawn)
                for name, square in chunk.items():
                    squares[name] += square
            count += batch_size(drawn.batch)
        samples.all_reduce({**squares, "count": count})
        n = float(count)
        require_samples(n)
        values = {name: (square / n).to(weights[name].dtype) for name, square in squares.items()}
        return Diagonal(values), {"samples": n}
