"""The variance of a reverse step, as the denoiser's own network has learned it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.prediction import x0_and_noise
from cl_diffusion.diffusion.samplers.gaussian import Covariance, Elementwise, GaussianSampler, Normal, Reverse
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps


class LearnedVarianceSampler(GaussianSampler):
    """``noise = sqrt(exp(v log beta + (1 - v) log beta_tilde)) z``, ``v`` from the network (2102.09672, eq. 15).

    Of a denoiser whose network was trained to return it: ``DDPM(learned_variance=True)``, or another that returns the
    prediction and ``2 v - 1`` one behind the other, as the published ones do. With fewer steps, ``beta`` and
    ``beta_tilde`` are those of the pair (section 4 there).

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        clip_pixel: see ``GaussianSampler``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.

    Raises:
        ValueError: ``clip_pixel`` is not positive; in sampling: the denoiser has learned no variance.
    """

    def __init__(
        self,
        steps: Steps = 25,
        clip: bool = True,
        clip_pixel: float | None = None,
        spacing: Spacing = "even",
    ) -> None:
        super().__init__(steps, clip, spacing, clip_pixel)

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        denoiser, q = reverse.denoiser, reverse.posterior
        x_t = reverse.x_t.to(denoiser.dtype)
        t = torch.full((len(x_t),), reverse.step.t, device=x_t.device)
        prediction, variance = denoiser.output(x_t, t, reverse.labels)
        if variance is None:
            raise ValueError(
                "the denoiser has learned no variance: train DDPM(learned_variance=True), whose network returns twice "
                "the images' channels, or use LanczosGaussianSampler, which needs no training"
            )
        x0, _ = x0_and_noise(denoiser.prediction, prediction, x_t, denoiser.schedule.scales(t, like=x_t))
        v: Tensor = (variance.to(reverse.x_t) + 1) / 2
        logarithm = v * math.log(q.beta) + (1 - v) * math.log(q.variance)
        return Elementwise(x0.to(reverse.x_t), logarithm.exp(), reverse.largest)
