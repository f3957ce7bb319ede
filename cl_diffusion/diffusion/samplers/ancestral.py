"""Ancestral sampling: the reverse Markov chain of the noising process."""

from __future__ import annotations

from typing import Literal, get_args

from typing_extensions import override

from cl_diffusion.diffusion.samplers.gaussian import Covariance, Elementwise, GaussianSampler, Normal, Reverse
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps

Variance = Literal["small", "large"]


class AncestralSampler(GaussianSampler):
    """``x_s = c0 x0hat + c1 x_t + sigma z``, the posterior of the pair (s, t) at the estimated clean image.

    With all steps this is Ho et al. 2020, algorithm 2 (mean: eq. 7 and 11); with fewer, the same on the respaced chain
    (Nichol & Dhariwal 2021, section 4). The last step returns the mean.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        variance: ``"small"`` is ``sigma^2 = beta_tilde``, right for data at one point; ``"large"`` is ``beta``, right
            for data that are N(0, I) (Ho et al. 2020, section 3.2).
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        clip_pixel: see ``GaussianSampler``.

    Raises:
        ValueError: the variance is unknown, or ``clip_pixel`` is not positive.
    """

    def __init__(
        self,
        steps: Steps = None,
        variance: Variance = "small",
        clip: bool = True,
        spacing: Spacing = "even",
        clip_pixel: float | None = None,
    ) -> None:
        if variance not in get_args(Variance):
            raise ValueError(f"variance={variance!r}: expected 'small' or 'large'.")
        super().__init__(steps, clip, spacing, clip_pixel)
        self.variance = variance

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        """Ho et al. 2020, algorithm 2, lines 3-4."""
        q = reverse.posterior
        x0, _ = reverse.denoiser.estimates_at(reverse.x_t, reverse.step.t, reverse.labels)
        return Elementwise(x0, q.variance if self.variance == "small" else q.beta, reverse.largest)
