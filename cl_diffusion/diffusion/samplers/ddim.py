"""Denoising diffusion implicit models."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.samplers.gaussian import Covariance, Elementwise, GaussianSampler, Normal, Reverse
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps


class DDIMSampler(GaussianSampler):
    """``x_s = sqrt(abar_s) x0hat + sqrt(1 - abar_s - sigma^2) epshat + sigma z`` (Song et al. 2021, eq. 12).

    ``sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)`` (eq. 16): 0 maps noise to images
    deterministically, 1 is ancestral sampling with the small variance. ``epshat`` is the noise that goes with x0hat,
    so where x0hat was clipped it is solved again.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        eta: share of the ancestral noise, in [0, 1].
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.

    Raises:
        ValueError: ``eta`` is not in [0, 1].
    """

    def __init__(self, steps: Steps = 50, eta: float = 0.0, clip: bool = True, spacing: Spacing = "even") -> None:
        super().__init__(steps, clip, spacing, eta=eta)

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        x0, _ = reverse.denoiser.estimates_at(reverse.x_t, reverse.step.t, reverse.labels)
        return Elementwise(x0, reverse.posterior.variance) if self.eta else Deterministic(x0)


class Deterministic(Covariance):
    """No noise, and none drawn.

    Args:
        x0: the denoiser's estimate.
    """

    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0

    @override
    def noise(self, normal: Normal) -> Tensor:
        return self.x0.new_zeros(())

    @override
    def product(self, v: Tensor) -> Tensor:
        return v.new_zeros(())
