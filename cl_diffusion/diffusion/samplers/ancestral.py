"""Ancestral sampling: the reverse Markov chain of the noising process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers.sampler import Sampler, Step

Variance = Literal["small", "large"]


class AncestralSampler(Sampler):
    """``x_s = c0 x0hat + c1 x_t + sigma z``, the posterior of the pair (s, t) at the estimated clean image.

    With all steps this is Ho et al. 2020, algorithm 2 (mean: eq. 7 and 11); with fewer, the same on the respaced chain
    (Nichol & Dhariwal 2021, section 4). The last step returns the mean.

    Args:
        steps: number of steps; None: every timestep of the schedule.
        variance: ``"small"`` is ``sigma^2 = beta_tilde``, right for data at one point; ``"large"`` is ``beta``, right
            for data that are N(0, I) (Ho et al. 2020, section 3.2).
        clip: clamp the estimate of the clean image to [-1, 1] in each step.

    Raises:
        ValueError: the variance is unknown.
    """

    def __init__(self, steps: int | None = None, variance: Variance = "small", clip: bool = True) -> None:
        if variance not in get_args(Variance):
            raise ValueError(f"variance={variance!r}: expected 'small' or 'large'.")
        self.steps = steps
        self.variance = variance
        self.clip = clip

    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        """Ho et al. 2020, algorithm 2, lines 3-4."""
        x0, _ = self.x0_and_noise(denoiser, x_t, step.t, labels)
        q = posterior(denoiser.schedule, step.s, step.t)
        mean = q.mean(x0, x_t)
        if step.s == -1:
            return mean
        variance = q.beta_tilde if self.variance == "small" else q.beta
        return mean + math.sqrt(variance) * normal()
