"""The diagonal of a reverse step's covariance, as a trained head has it."""

from __future__ import annotations

from typing_extensions import override

from cl_diffusion.diffusion.samplers.gaussian import Covariance, Elementwise, GaussianSampler, Normal, Reverse
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps
from cl_diffusion.diffusion.variance_head import VarianceHead


class LearnedDiagonalSampler(GaussianSampler):
    """``noise = sqrt(variance + c0^2 diag(Cov[x0 | x_t])) z``, the diagonal from a ``VarianceHead``.

    NPR-DPM and SN-DPM (2206.07309) or OCM-DDPM (2406.10808), by what the head was trained for. The elements of
    ``diag(Cov[x0 | x_t])`` are taken for between 0 and 1, as images in [-1, 1] have them.

    Args:
        head: trained on the denoiser, or the file it was saved to.
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        clip_pixel: see ``GaussianSampler``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        eta: see ``GaussianSampler``.

    Raises:
        ValueError: ``clip_pixel`` is not positive, or ``eta`` not in [0, 1].
    """

    def __init__(
        self,
        head: VarianceHead | str,
        steps: Steps = 25,
        clip: bool = True,
        clip_pixel: float | None = 2.0,
        spacing: Spacing = "even",
        eta: float = 1.0,
    ) -> None:
        super().__init__(steps, clip, spacing, clip_pixel, eta)
        self.head = VarianceHead.load(head) if isinstance(head, str) else head

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        q, abar = reverse.posterior, reverse.denoiser.schedule.alpha_bar_at(reverse.step.t)
        head = self.head.to(reverse.denoiser.device)
        estimate = head.estimate(reverse.denoiser, reverse.x_t, reverse.step.t, reverse.labels)
        clean = ((1 - abar) / abar * estimate.ratio).clamp(max=1.0)
        return Elementwise(estimate.x0, q.variance + q.c0**2 * clean, reverse.largest)
