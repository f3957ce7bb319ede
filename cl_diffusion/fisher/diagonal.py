"""The diagonal of the Fisher."""

from __future__ import annotations

from typing_extensions import override

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import sample_mean
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Diagonal, Operator


class DiagonalFisher(FisherEstimator):
    """``f = (1/n) sum_i a_i g_i * g_i``: the diagonal of ``F``, exactly, of per-sample gradients; one pass.

    With the empirical residual it is not the squared gradient of a batch, which is another matrix (van de Ven 2025,
    2502.11756, names it BATCHED), and not the Fisher information (Kunstner et al. 2019, 1905.12558).

    Takes the arguments of ``FisherEstimator``.
    """

    name = "diagonal"
    kind = Diagonal.kind

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        mean, n = sample_mean(samples, samples.summed_squares)
        return Diagonal(samples.to_parameters(mean)), {"samples": n, **report}
