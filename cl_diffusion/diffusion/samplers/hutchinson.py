"""The diagonal of a reverse step's covariance, without training."""

from __future__ import annotations

import torch
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.diffusion.samplers.gaussian import (
    Covariance,
    Elementwise,
    GaussianSampler,
    Normal,
    Reverse,
    most_variance,
)
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.diffusion.tweedie import Product, Tweedie, product_evaluations


class HutchinsonSampler(GaussianSampler):
    """``noise = sqrt(diag(Sigma)) z``, with ``diag(Cov[x0 | x_t]) ~= mean_j v_j * (C v_j)`` over random signs ``v_j``.

    The estimate is unbiased, its variance the off-diagonal part of ``C`` over ``probes`` (Hutchinson 1990); where it is
    negative it is taken for zero, and with ``clip`` where it is more than an element in [-1, 1] can have, ``1 -
    x0hat^2``, for that. Like ``LanczosGaussianSampler`` it needs neither training nor data, at ``probes``
    products a step.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        probes: products a step.
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        clip_pixel: see ``GaussianSampler``.
        product: see ``Tweedie``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        eta: see ``GaussianSampler``.

    Raises:
        ValueError: ``probes`` or ``clip_pixel`` is not positive, or ``eta`` not in [0, 1].
    """

    def __init__(
        self,
        steps: Steps = 25,
        probes: int = 3,
        clip: bool = True,
        clip_pixel: float | None = 2.0,
        product: Product = "vjp",
        spacing: Spacing = "even",
        eta: float = 1.0,
    ) -> None:
        if not is_whole(probes, 1):
            raise ValueError(f"probes={probes!r}; expected at least 1 product a step")
        super().__init__(steps, clip, spacing, clip_pixel, eta)
        self.probes = probes
        self.product: Product = product

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        q = reverse.posterior
        tweedie = Tweedie(reverse.denoiser, reverse.x_t, reverse.step.t, reverse.labels, self.product)
        total = torch.zeros_like(reverse.x_t)
        for _ in range(self.probes):
            signs = normal().sign()
            total += signs * tweedie.covariance(signs)
        clean = (total / self.probes).clamp(min=0.0)
        if self.clip:
            clean = clean.minimum(most_variance(tweedie.x0))
        return Elementwise(tweedie.x0, q.variance + q.c0**2 * clean, reverse.largest)

    @override
    def evaluations(self, schedule: NoiseSchedule) -> int:
        steps = len(self.timesteps(schedule))
        return steps + (steps - 1) * product_evaluations(self.product, self.probes)
