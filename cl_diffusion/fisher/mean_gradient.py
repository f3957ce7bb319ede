"""The rank-one approximation of the empirical Fisher along the mean gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.fisher.estimator import FisherEstimator, require_samples
from cl_diffusion.fisher.gradient import batch_size
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
        dtype: of the sums over samples.

    Raises:
        ValueError: unknown coefficient.
    """

    def __init__(self, coefficient: Coefficient = "optimal", dtype: torch.dtype = torch.float64) -> None:
        if coefficient not in ("optimal", "plain"):
            raise ValueError(f"coefficient={coefficient!r}; expected 'optimal' or 'plain'")
        self.coefficient = coefficient
        self.dtype = dtype

    @override
    def identity(self) -> dict[str, str]:
        return {"estimator": f"mean gradient, {self.coefficient} coefficient", "residual": "empirical"}

    @override
    def compute(self, samples: Samples) -> tuple[Operator, dict[str, float]]:
        halves, counts = self._half_sums(samples)
        n = float(counts.sum())
        require_samples(n)
        mean = {name: half.sum(0) / n for name, half in halves.items()}
        squared_norm = float(parameters.inner(mean, mean))
        if squared_norm == 0.0:
            raise ValueError(f"the mean gradient over {n:.0f} samples is exactly zero: it has no direction to protect")
        report = {"samples": n, "mean_gradient_squared": squared_norm, **_split_half(halves, counts)}
        types = {name: weight.dtype for name, weight in samples.gradients.parameters.items()}
        direction = {name: (mu / squared_norm**0.5).to(types[name]) for name, mu in mean.items()}
        if self.coefficient == "optimal":
            # c* |mu|^2 = E[(mu^T g)^2] / |mu|^2: the mean squared projection on the unit direction.
            value, error = self._mean_squared_projection(samples, direction)
            report |= {"coefficient": value / squared_norm, "coefficient_standard_error": error / squared_norm}
        else:
            value = squared_norm
            report |= {"coefficient": 1.0}
        columns = {name: column.unsqueeze(0) for name, column in direction.items()}
        return LowRank(columns, torch.tensor([value], dtype=torch.float64, device=samples.gradients.device)), report

    def _half_sums(self, samples: Samples) -> tuple[Parameters, Tensor]:
        """The summed gradients of the two halves, stacked on a leading axis, and the halves' sizes."""
        weights = samples.gradients.parameters
        sums = {name: weight.new_zeros((2, *weight.shape), dtype=self.dtype) for name, weight in weights.items()}
        counts = torch.zeros(2, dtype=torch.float64, device=samples.gradients.device)
        for drawn in samples.drawn():
            for half, part in enumerate(samples.halves(drawn)):
                if len(part.indices) == 0:
                    continue
                gradient = samples.gradients.summed(part.batch)
                samples.require_finite(gradient, part)
                for name, g in gradient.items():
                    sums[name][half] += g
                counts[half] += len(part.indices)
        samples.all_reduce({**sums, "counts": counts})
        return sums, counts

    def _mean_squared_projection(self, samples: Samples, direction: Parameters) -> tuple[float, float]:
        """``E[(u^T g)^2]`` over fresh draws, and its standard error."""
        moments = torch.zeros(3, dtype=torch.float64, device=samples.gradients.device)
        for drawn in samples.drawn(draw=1):
            squares = samples.gradients.projections(drawn.batch, direction).double().square()
            samples.require_finite({"projection": squares}, drawn)
            moments += torch.stack([squares.sum(), squares.square().sum(), squares.new_tensor(batch_size(drawn.batch))])
        samples.all_reduce({"moments": moments})
        total, total_of_squares, n = moments.tolist()
        variance = max(total_of_squares / n - (total / n) ** 2, 0.0) * n / max(n - 1.0, 1.0)
        return total / n, (variance / n) ** 0.5


def _split_half(sums: Parameters, counts: Tensor) -> dict[str, float]:
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
