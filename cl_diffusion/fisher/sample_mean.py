"""The mean over samples of a sum that batches give."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Parameters, parameters


def sample_mean(samples: Samples, summed: Callable[[Drawn], Parameters]) -> tuple[Parameters, float]:
    """``(1/n) sum_batches summed(batch)`` over all processes, in one pass, and the number of samples ``n``.

    Raises:
        ValueError: there is no sample.
    """
    sums, count = samples.zeros(), torch.zeros(1, dtype=torch.float64, device=samples.device)
    for drawn in samples.drawn():
        parameters.add_mixed_(sums, summed(drawn))
        count += drawn.num_samples
    samples.all_reduce({**sums, "count": count})
    n = float(count)
    require_samples(n)
    return parameters.scale(sums, 1 / n), n


def require_samples(count: float) -> None:
    """Refuse an average over nothing."""
    if count == 0:
        raise ValueError("batches holds no sample; an importance operator is an average over at least one")
