"""The Fisher's trace, and nothing else of it: spread over all directions, or on one at random."""

from __future__ import annotations

import torch
from typing_extensions import override

from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import sample_mean
from cl_diffusion.fisher.samples import Drawn, Samples
from cl_diffusion.keys import keyed_normal
from cl_diffusion.linalg import Identity, LowRank, Operator, parameters


class IsotropicFisher(FisherEstimator):
    """``(tr F / P) I``: the multiple of the identity nearest to ``F``. A control: it knows of no direction.

    Takes the arguments of ``FisherEstimator``.
    """

    name = "isotropic"
    kind = Identity.kind

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        trace, n = _trace(samples)
        like = samples.gradients.parameters
        return Identity(like, trace / sum(p.numel() for p in like.values())), {"samples": n, **report}


class RandomDirectionFisher(FisherEstimator):
    """``tr F u u^T`` with ``u`` uniform on the sphere, a function of the seed: a control for any rank-one Fisher.

    Takes the arguments of ``FisherEstimator``.
    """

    name = "random direction"
    kind = LowRank.kind

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        trace, n = _trace(samples)
        like = samples.gradients.parameters
        key = samples.keys(torch.zeros(1, dtype=torch.int64), purpose="random direction")
        direction = keyed_normal(key, (sum(p.numel() for p in like.values()),))[0]
        direction /= torch.linalg.vector_norm(direction)
        columns = samples.to_parameters({n: c[None] for n, c in parameters.unflatten(direction, like).items()})
        return LowRank(columns, torch.tensor([trace], dtype=torch.float64, device=samples.device)), {
            "samples": n,
            **report,
        }


def _trace(samples: Samples) -> tuple[float, float]:
    """``E|g|^2``, and how many samples it is of."""
    mean, n = sample_mean(samples, samples.summed_squares)
    return float(sum(entries.sum() for entries in mean.values())), n
