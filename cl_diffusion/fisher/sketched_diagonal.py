"""The diagonal of the Fisher, estimated without any per-sample gradient."""

from __future__ import annotations

import torch
from typing_extensions import override

from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import require_samples
from cl_diffusion.linalg import Diagonal, Operator, parameters


class SketchedDiagonalFisher(FisherEstimator):
    """``f = (1/n) sum_batches (sum_{i in batch} r_i g_i)^2`` with independent signs ``r_i``: the diagonal without bias.

    ``E_r[(sum_i r_i g_i)^2] = sum_i g_i^2`` elementwise, at the price of one ordinary backward a batch and no further
    memory, for models whose per-sample gradients are out of reach. Its relative standard deviation is about
    ``sqrt(2/m)`` after m batches of many samples, more when they are uneven: 35% after 16. The signs are a function
    of (seed, index), but which samples share a sum is not, so that the *estimate* depends on batches and processes; its
    expectation does not. (Derived.)

    Takes the arguments of ``FisherEstimator``.
    """

    name = "sketched diagonal"
    kind = Diagonal.kind

    @property
    @override
    def takes_sums_alone(self) -> bool:
        return self.weighting is None

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        squares, counts = samples.zeros(), torch.zeros(2, dtype=torch.float64, device=samples.device)
        for drawn in samples.drawn():
            signs = samples.keys(drawn.indices, drawn.outcome, purpose="sign").remainder(2) * 2 - 1
            sketch = samples.summed(drawn, signs)
            parameters.add_mixed_(squares, parameters.multiply(sketch, sketch))
            counts[0] += drawn.num_samples
            counts[1] += samples.own_share
        samples.all_reduce({**squares, "counts": counts})
        n, batches = counts.tolist()
        require_samples(n)
        mean = samples.to_parameters(parameters.scale(squares, 1 / n))
        return Diagonal(mean), {"samples": n, "batches": batches, **report}
