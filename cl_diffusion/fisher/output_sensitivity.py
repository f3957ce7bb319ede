"""Memory Aware Synapses: how much each parameter moves the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.sample_mean import sample_mean
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Diagonal, Operator, parameters


class OutputSensitivity(FisherEstimator):
    """``f = (2/n) sum_i |d |f(x_i)|^2 / d theta|``: Memory Aware Synapses (Aljundi et al. 2018, 1711.09601, eq. 2-3).

    Absolute values of *per-sample* gradients, which no second moment is: it has the unit of the output squared over a
    parameter. Its loss is a ``SquaredOutput``. The factor 2 is there because a penalty is ``lambda/2 d^T F d`` here,
    and ``lambda Omega d^2`` in the paper.

    Args:
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        dtype: of sums over samples.
        offload: keep sums over samples on the CPU.
    """

    name = "output sensitivity"
    kind = Diagonal.kind

    def __init__(
        self,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        dtype: torch.dtype = torch.float64,
        offload: bool = False,
    ) -> None:
        super().__init__(include=include, exclude=exclude, dtype=dtype, offload=offload)

    @override
    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        samples.summed_absolute(drawn)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        samples, report = self.samples(population)
        mean, n = sample_mean(samples, samples.summed_absolute)
        return Diagonal(samples.to_parameters(parameters.scale(mean, 2.0))), {"samples": n, **report}


class SquaredOutput:
    """``(model, batch) -> (B,)``: ``|f(x)|^2``, the sum over all elements of a sample's output.

    Args:
        output: ``(model, batch) -> f``, shape ``(B, ...)``. By default ``model(*batch[:-1])`` of a batch that is a
            tuple or list of two parts or more, whose last is the target; ``model(x)`` of ``(x,)``; else
            ``model(batch)``.

    Raises:
        ValueError: when called, if the output is no tensor with an axis of samples.
    """

    def __init__(self, output: Callable[[Any, Any], Tensor] | None = None) -> None:
        self.output = output or _output

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """``|f|^2`` of each sample."""
        f = self.output(model, batch)
        if not isinstance(f, Tensor) or f.ndim == 0:
            raise ValueError(
                f"output(model, batch) is {type(f).__name__ if not isinstance(f, Tensor) else 'a scalar'}; expected a "
                "tensor (B, ...): give SquaredOutput(output) a function that takes it from what the model returns"
            )
        return f.reshape(len(f), -1).square().sum(1)


def _output(model: Any, batch: Any) -> Tensor:
    parts = batch if isinstance(batch, (tuple, list)) else [batch]
    output: Tensor = model(*(parts[:-1] if len(parts) > 1 else parts))
    return output
