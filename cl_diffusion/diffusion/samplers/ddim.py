"""Denoising diffusion implicit models."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.posterior import posterior
from cl_diffusion.diffusion.samplers.sampler import Sampler, Step
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps


class DDIMSampler(Sampler):
    """``x_s = sqrt(abar_s) x0hat + sqrt(1 - abar_s - sigma^2) epshat + sigma z`` (Song et al. 2021, eq. 12).

    ``sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)`` (eq. 16): 0 maps noise to images
    deterministically, 1 is ancestral sampling with the small variance. Where x0hat was clipped, epshat is solved again
    to fit it.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        eta: share of the ancestral noise, in [0, 1].
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.

    Raises:
        ValueError: ``eta`` is not in [0, 1].
    """

    def __init__(self, steps: Steps = 50, eta: float = 0.0, clip: bool = True, spacing: Spacing = "even") -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: expected a value in [0, 1], from deterministic to ancestral.")
        self.steps = steps
        self.eta = eta
        self.clip = clip
        self.spacing: Spacing = spacing

    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        """Song et al. 2021, eq. 12."""
        x0, noise = self.x0_and_noise(denoiser, x_t, step.t, labels)
        abar_s = denoiser.schedule.alpha_bar_at(step.s)
        variance = self.eta**2 * posterior(denoiser.schedule, step.s, step.t).beta_tilde
        x_s = math.sqrt(abar_s) * x0 + math.sqrt(max(1 - abar_s - variance, 0.0)) * noise
        return x_s if variance == 0 else x_s + math.sqrt(variance) * normal()
