"""The Gaussian that leads from a noisy image to a less noisy one, given the clean image."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from cl_diffusion.diffusion.schedule import NoiseSchedule


class Posterior(NamedTuple):
    """Coefficients of ``q(x_s | x_t, x0) = N(c0 x0 + c1 x_t, variance I)``.

    With ``alpha = abar_t / abar_s`` and ``beta = 1 - alpha``, the noise variance that the step from s to t adds:
    ``variance = eta^2 beta (1 - abar_s) / (1 - abar_t)``, ``c1 = sqrt((1 - abar_s - variance) / (1 - abar_t))`` and
    ``c0 = sqrt(abar_s) - c1 sqrt(abar_t)``. With ``eta = 1`` it is the Markov chain's: ``variance = beta_tilde``,
    ``c0 = sqrt(abar_s) beta / (1 - abar_t)``, ``c1 = sqrt(alpha) (1 - abar_s) / (1 - abar_t)`` (Ho et al. 2020, eq.
    6-7); with less it is DDIM's, with the same marginals (Song et al. 2021, eq. 7 and 16).
    """

    c0: float
    c1: float
    beta: float
    variance: float

    def mean(self, x0: Tensor, x_t: Tensor) -> Tensor:
        """``c0 x0 + c1 x_t``."""
        return self.c0 * x0 + self.c1 * x_t


def posterior(schedule: NoiseSchedule, s: int, t: int, eta: float = 1.0) -> Posterior:
    """The coefficients of the step from ``t`` down to ``s``, to float64 accuracy; ``s = -1`` is the clean image.

    Raises:
        ValueError: not ``-1 <= s < t < T``.
    """
    if not s < t:
        raise ValueError(f"s={s}, t={t}: a reverse step goes to less noise, so s must be less than t.")
    abar_s, abar_t = schedule.alpha_bar_at(s), schedule.alpha_bar_at(t)
    beta = 1 - abar_t / abar_s
    variance = eta**2 * beta * (1 - abar_s) / (1 - abar_t)
    c1 = math.sqrt((1 - abar_s - variance) / (1 - abar_t))
    return Posterior(c0=math.sqrt(abar_s) - c1 * math.sqrt(abar_t), c1=c1, beta=beta, variance=variance)
