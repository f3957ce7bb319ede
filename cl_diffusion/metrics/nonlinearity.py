"""How far a network's output is from the best linear one's."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_diffusion.metrics.half_samples import Estimate, Members, with_error


def distance_from_linear(apart: Tensor, sizes: Tensor, *, repeats: int = 40, seed: int = 0) -> Estimate:
    """``(E|f - f_lin|^2 / E|f|^2)^(1/2)``, with its standard error over half samples.

    Args:
        apart: ``|f_i - f_lin,i|^2`` of each sample, ``(n,)``.
        sizes: ``|f_i|^2``, ``(n,)``.
        repeats: random halves.
        seed: of the halves.
    """

    def ratio(members: Members) -> dict[str, float]:
        chosen = members["samples"]
        return {"ratio": float(apart[chosen].mean() / sizes[chosen].mean()) ** 0.5}

    return with_error(ratio, {"samples": torch.arange(len(apart))}, repeats=repeats, seed=seed)["ratio"]
