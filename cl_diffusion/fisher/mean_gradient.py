"""The rank-one approximation of the Fisher along the mean gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report, Settings
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import require_samples
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import LowRank, Operator, Parameters, parameters

Coefficient = Literal["optimal", "plain"]


class MeanGradientFisher(FisherEstimator):
    """``c mu mu^T`` with ``mu = (1/n) sum_i g_i``: rank one along the mean gradient (2509.23593, eq. 5-6).

    ``coefficient="optimal"`` takes ``c* = E[(mu^T g)^2] / |mu|^4``, which minimises ``|E[g g^T] - c mu mu^T|_F``;
    ``"plain"`` takes ``c = 1``, which is the outer product of the mean gradient, not its best approximation of the
    Fisher. ``c*`` is taken on fresh draws of noise and timestep (on the draws that made ``mu`` it is biased up), so the
    samples are passed over twice; ``mu`` itself is ordinary backward passes, no per-sample gradient.

    It reports the noise of ``mu``, for at a stationary point of the loss ``mu`` is nothing else. With ``A`` and ``B``
    the mean gradients of two disjoint random halves of the samples (``n_A + n_B = n``):

    - ``mean_gradient_squared``: ``|mu|^2``, which overestimates by ``tr Cov(g) / n``;
    - ``mean_gradient_squared_unbiased``: ``A^T B``, which may be negative;
    - ``covariance_trace_over_n``: ``|A - B|^2 n_A n_B / n^2``, an unbiased ``tr Cov(g) / n``. The halves hold different
      images, so this counts the noise of choosing images as well as that of the draws;
    - ``split_half_cosine``: ``cos(A, B)``: a direction that does not agree with itself is not an estimate;
    - ``coefficient`` and, for ``c*``, ``coefficient_standard_error``, that of its mean over samples.

    Args:
        coefficient: ``"optimal"`` or ``"plain"``.
        coefficient_fraction: of the samples, on which ``c*`` is taken; it is a mean of scalars, so a part will do where
            its standard error says so. Which samples is a function of (seed, index).
        **settings: of ``FisherEstimator``.

    Raises:
        ValueError: unknown coefficient, a fraction outside (0, 1], or a residual whose mean gradient is zero.
    """

    kind = LowRank.kind

    def __init__(
        self,
        coefficient: Coefficient = "optimal",
        coefficient_fraction: float = 1.0,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        if coefficient not in ("optimal", "plain"):
            raise ValueError(f"coefficient={coefficient!r}; expected 'optimal' or 'plain'")
        if not 0 < coefficient_fraction <= 1:
            raise ValueError(f"coefficient_fraction={coefficient_fraction!r}; expected a share in (0, 1]")
        if self.residual.zero_mean:
            raise ValueError(
                f"residual={self.residual.name!r} has a mean gradient of zero by construction, so it has no direction; "
                "use LeadingEigenpairsFisher(rank=1) for rank one of the true Fisher"
            )
        self.coefficient = coefficient
        self.coefficient_fraction = coefficient_fraction

    @property
    @override
    def name(self) -> str:
        return f"mean gradient, {self.coefficient} coefficient"

    @property
    @override
    def takes_sums_alone(self) -> bool:
        return self.weighting is None and self.coefficient == "plain"

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        direction = samples.to_parameters(samples.summed(drawn))
        if self.coefficient == "optimal":
            samples.projections(drawn, direction)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, fitted = self.samples(population)
        halves, counts = _half_sums(samples)
        n = float(counts.sum())
        require_samples(n)
        mean = {name: half.sum(0) / n for name, half in halves.items()}
        squared_norm = float(parameters.inner(mean, mean))
        if squared_norm == 0.0:
            raise ValueError(f"the mean gradient over {n:.0f} samples is exactly zero: it has no direction to protect")
        report = {"samples": n, "mean_gradient_squared": squared_norm, **_split_half(halves, counts), **fitted}
        direction = samples.to_parameters(parameters.scale(mean, squared_norm**-0.5))
        if self.coefficient == "optimal":
            # c* |mu|^2 = E[(mu^T g)^2] / |mu|^2: the mean squared projection on the unit direction.
            value, error, used = self._mean_squared_projection(samples, direction)
            report |= {
                "coefficient": value / squared_norm,
                "coefficient_standard_error": error / squared_norm,
                "coefficient_samples": used,
            }
        else:
            value = squared_norm
            report |= {"coefficient": 1.0}
        columns = {name: column.unsqueeze(0) for name, column in direction.items()}
        return LowRank(columns, torch.tensor([value], dtype=torch.float64, device=samples.device)), report

    def _mean_squared_projection(self, samples: Samples, direction: Parameters) -> tuple[float, float, float]:
        """``E[(u^T g)^2]`` over fresh draws, its standard error, and the number of samples."""
        moments = torch.zeros(3, dtype=torch.float64, device=samples.device)
        for drawn in samples.subset(self.coefficient_fraction, draw=1):
            squares = samples.projections(drawn, direction).square()
            moments += torch.stack([squares.sum(), squares.square().sum(), squares.new_tensor(float(len(squares)))])
        samples.all_reduce({"moments": moments})
        total, total_of_squares, n = moments.tolist()
        if n == 0:
            raise ValueError(
                f"coefficient_fraction={self.coefficient_fraction!r} leaves none of the samples; give a larger share"
            )
        variance = max(total_of_squares / n - (total / n) ** 2, 0.0) * n / max(n - 1.0, 1.0)
        return total / n, (variance / n) ** 0.5, n


def _half_sums(samples: Samples) -> tuple[Parameters, Tensor]:
    """The summed gradients of the two halves, stacked on a leading axis, and the halves' sizes."""
    sums = samples.zeros(2)
    counts = torch.zeros(2, dtype=torch.float64, device=samples.device)
    for half, drawn, inside in samples.by_half():
        parameters.add_mixed_({name: total[half] for name, total in sums.items()}, samples.summed(drawn, inside))
        counts[half] += drawn.num_samples
    samples.all_reduce({**sums, "counts": counts})
    return sums, counts


def _split_half(sums: Parameters, counts: Tensor) -> Report:
    """What two disjoint halves say of the noise of the mean; nothing where one half is empty."""
    n_a, n_b = counts.tolist()
    if n_a == 0 or n_b == 0:
        return {}
    a = {name: half[0] / n_a for name, half in sums.items()}
    b = {name: half[1] / n_b for name, half in sums.items()}
    apart = float(parameters.norm(parameters.subtract(a, b)))
    product = float(parameters.inner(a, b))
    lengths = float(parameters.norm(a) * parameters.norm(b))
    return {
        "mean_gradient_squared_unbiased": product,
        "covariance_trace_over_n": apart**2 * n_a * n_b / (n_a + n_b) ** 2,
        "split_half_cosine": product / lengths if lengths else float("nan"),
    }
