"""The leading eigenpairs of the Fisher."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from cl_diffusion.arguments import is_whole
from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report, Settings
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.repeatable import require_repeatable
from cl_diffusion.fisher.sample_mean import require_samples
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import keyed_normal
from cl_diffusion.linalg import LowRank, Operator, lanczos_eigenpairs, parameters


class LeadingEigenpairsFisher(FisherEstimator):
    """``sum_{j <= k} lambda_j v_j v_j^T``: the best rank-k approximation of ``F``, by Lanczos on its products.

    ``F v = (1/n) sum_i g_i (g_i^T v)``, all-reduced: one pass over the samples a step, on the same draws each
    time. Lanczos keeps one vector a step (full re-orthogonalisation) and stops when every residual
    ``|F v_j - lambda_j v_j|`` is at most ``tolerance * lambda_1``; pairs below that are not told from zero and are left
    out, so that n samples give at most n pairs.

    It reports ``steps``, ``relative_residual`` (the largest, over ``lambda_1``) and, from rank 2 on,
    ``second_to_first``: ``lambda_2 / lambda_1``.

    Args:
        rank: ``k``.
        tolerance: relative to ``lambda_1``.
        max_steps: passes at most, and so many vectors as long as the parameters; by default ``max(100, 10 k)``.
            Where it ends the search, a warning says what residual is left.
        **settings: of ``FisherEstimator``.

    Raises:
        ValueError: ``rank``, ``tolerance`` or ``max_steps`` leaves nothing to find, or all gradients are zero.
    """

    kind = LowRank.kind
    compares_passes = True

    def __init__(
        self, rank: int = 1, tolerance: float = 1e-6, max_steps: int | None = None, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(**settings)
        if not is_whole(rank, 1) or not (max_steps is None or is_whole(max_steps, rank)):
            raise ValueError(f"rank={rank!r}, max_steps={max_steps!r}; expected 1 <= rank <= max_steps")
        if not (0 < tolerance < 1):
            raise ValueError(f"tolerance={tolerance!r}; expected a number in (0, 1)")
        self.rank = rank
        self.tolerance = tolerance
        self.max_steps = max_steps

    @property
    @override
    def name(self) -> str:
        return f"leading eigenpairs, rank {self.rank}"

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.products(drawn, samples.to_parameters(samples.summed(drawn)))

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, fitted = self.samples(population)
        n = _count(samples)
        require_repeatable(samples)
        like = samples.gradients.parameters

        def product(flat: Tensor) -> Tensor:
            total = samples.zeros()
            direction = samples.to_parameters(parameters.unflatten(flat, like))
            for drawn in samples.drawn():
                parameters.add_mixed_(total, samples.products(drawn, direction))
            samples.all_reduce(total)
            return parameters.flatten(total) / n

        start = keyed_normal(samples.keys(torch.zeros(1, dtype=torch.int64), purpose="lanczos"), (_size(like),))[0]
        device = torch.device("cpu") if self.offload else samples.device
        pairs = lanczos_eigenpairs(
            product, start.to(device, self.dtype), self.rank, tolerance=self.tolerance, max_steps=self.max_steps
        )
        largest = float(pairs.values[0])
        if largest == 0.0:
            raise ValueError(f"all gradients of {n:.0f} samples are zero: there is no direction to protect")
        residual = float(pairs.residuals.max()) / largest
        if not pairs.converged:
            warnings.warn(
                f"{pairs.steps} Lanczos steps leave a relative residual of {residual:.1e} (tolerance "
                f"{self.tolerance:g}); give a larger max_steps, a smaller rank or a larger tolerance",
                stacklevel=2,
            )
        kept = pairs.values > self.tolerance * largest
        columns = [parameters.unflatten(vector, like) for vector in pairs.vectors[kept]]
        vectors = samples.to_parameters({name: torch.stack([c[name] for c in columns]) for name in like})
        report = {
            "samples": n,
            "steps": float(pairs.steps),
            "relative_residual": residual,
            **fitted,
        }
        if len(pairs.values) > 1:
            report["second_to_first"] = float(pairs.values[1]) / largest
        return LowRank(vectors, pairs.values[kept].to(samples.device)), report


def _count(samples: Samples) -> float:
    count = torch.zeros(1, dtype=torch.float64, device=samples.device)
    for drawn in samples.drawn():
        count += drawn.num_samples
    samples.all_reduce({"count": count})
    require_samples(float(count))
    return float(count)


def _size(like: parameters.Parameters) -> int:
    return sum(parameter.numel() for parameter in like.values())
