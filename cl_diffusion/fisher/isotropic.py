"""The Fisher's trace, and nothing else of it: spread over all directions, or on one at random."""

from __future__ import annotations

from abc import abstractmethod

import torch
from typing_extensions import override

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import sample_mean
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import keyed_normal
from cl_diffusion.linalg import Identity, LowRank, Operator, parameters
from cl_diffusion.processes import gathered_objects


class TraceFisher(FisherEstimator):
    """An operator with the trace of ``F``, ``E|g|^2``, whose directions are none of its own: a control."""

    @abstractmethod
    def operator(self, samples: Samples, trace: float) -> Operator:
        """The operator of this trace."""

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_squares(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        mean, n = sample_mean(samples, samples.summed_squares)
        trace = float(sum(entries.sum() for entries in mean.values()))
        return self.operator(samples, trace), {"samples": n, **report}


class IsotropicFisher(TraceFisher):
    """``(tr F / P) I``: the multiple of the identity nearest to ``F``.

    Takes the arguments of ``FisherEstimator``.
    """

    name = "isotropic"
    kind = Identity.kind

    @override
    def operator(self, samples: Samples, trace: float) -> Identity:
        like = samples.gradients.parameters
        return Identity(like, trace / sum(p.numel() for p in like.values()))


class RandomDirectionFisher(TraceFisher):
    """``tr F u u^T`` with ``u`` uniform on the sphere, a function of the seed and of which samples there are.

    So each task of a stream has another; batches that do not say their samples' indices are numbered from 0 in every
    task, and tasks of one size then share one.

    Takes the arguments of ``FisherEstimator``.
    """

    name = "random direction"
    kind = LowRank.kind

    @override
    def operator(self, samples: Samples, trace: float) -> LowRank:
        like = samples.gradients.parameters
        which = sum(int(drawn.indices.sum()) for drawn in samples.drawn())
        key = samples.keys(torch.tensor([sum(gathered_objects(which))]), purpose="random direction")
        direction = keyed_normal(key, (sum(p.numel() for p in like.values()),))[0]
        direction /= torch.linalg.vector_norm(direction)
        columns = {name: column[None] for name, column in parameters.unflatten(direction, like).items()}
        values = torch.tensor([trace], dtype=torch.float64, device=samples.device)
        return LowRank(samples.to_parameters(columns), values)
