"""The diagonal of the Fisher."""

from __future__ import annotations

import torch
from typing_extensions import override

from cl_diffusion.fisher.estimator import FisherEstimator, Report, require_samples
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.samples import Drawn, Samples
from cl_diffusion.linalg import Diagonal, Operator, parameters


class DiagonalFisher(FisherEstimator):
    """``f = (1/n) sum_i a_i g_i * g_i``: the diagonal of ``F``, exactly, of per-sample gradients; one pass.

    With the empirical residual it is not the squared gradient of a batch, which is another matrix (van de Ven 2025,
    2502.11756, names it BATCHED), and not the Fisher information (Kunstner et al. 2019, 1905.12558).

    Takes the arguments of ``FisherEstimator``.
    """

    name = "diagonal"

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        squares, count = samples.zeros(), torch.zeros(1, dtype=torch.float64, device=samples.device)
        for drawn in samples.drawn():
            parameters.add_mixed_(squares, samples.summed_squares(drawn))
            count += drawn.num_samples
        samples.all_reduce({**squares, "count": count})
        n = float(count)
        require_samples(n)
        mean = samples.to_parameters(parameters.scale(squares, 1 / n))
        return Diagonal(mean), {"samples": n, **report}
