"""The variance of a reverse step, as the denoiser's own network has learned it."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.denoiser import Denoiser
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
        clip_pixel: float | None = 2.0,
        spacing: Spacing = "even",
    ) -> None:
        super().__init__(steps, clip, spacing, clip_pixel)

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        denoiser, q, t = reverse.denoiser, reverse.posterior, reverse.step.t
        self.check(denoiser)
        prediction, variance = denoiser.output_at(reverse.x_t, t, reverse.labels)
        assert variance is not None
        x0, _ = denoiser.estimates_of(prediction, reverse.x_t, t)
        v: Tensor = (variance + 1) / 2
        logarithm = v * math.log(q.beta) + (1 - v) * math.log(q.variance)
        return Elementwise(x0, logarithm.exp(), reverse.largest)

    @override
    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if not denoiser.learned_variance:
            raise ValueError(
                "the denoiser has learned no variance: train DDPM(learned_variance=True), whose network returns twice "
                "the images' channels, or use LanczosGaussianSampler, which needs no training"
            )
