"""Reverse steps that are Gaussian: one mean, and a covariance that each sampler chooses."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.posterior import Posterior, posterior
from cl_diffusion.diffusion.samplers.sampler import Sampler, Step


class Reverse(NamedTuple):
    """One reverse step of a batch: where it starts, its coefficients, and the largest standard deviation allowed."""

    denoiser: Denoiser
    x_t: Tensor
    labels: Tensor | None
    step: Step
    posterior: Posterior
    largest: float


class GaussianSampler(Sampler):
    """``x_s = c0 x0hat + c1 x_t + noise``, with ``noise ~ N(0, Sigma')``; the last step returns the mean.

    The mean is the posterior's at the estimated clean image (Ho et al. 2020, eq. 7), for any pair (s, t). With the
    exact ``x0hat = E[x0 | x_t]``, the covariance of ``q(x_s | x_t)`` is ``Sigma = beta_tilde I + c0^2 Cov[x0 | x_t]``;
    samplers differ in how they come by ``Cov[x0 | x_t]``.

    Attributes:
        clip_pixel: bounds the standard deviation of the last noise that is added, by ``2/255 sqrt(pi/2) clip_pixel``
            (Bao et al. 2022, 2201.06503, appendix F); None does not. It decides the quality of few steps.
    """

    clip_pixel: float | None = None

    @abstractmethod
    def clean_and_noise(self, reverse: Reverse, normal: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """``x0hat``, not clamped, and noise of the step's covariance; ``normal()`` is fresh N(0, I), like ``x_t``."""

    @final
    @override
    def step(
        self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Callable[[], Tensor]
    ) -> Tensor:
        q = posterior(denoiser.schedule, step.s, step.t)
        if step.s == -1:
            x0, _ = self.x0_and_noise(denoiser, x_t, step.t, labels)
            return q.mean(x0, x_t)
        last_noise = step.s == self.timesteps(denoiser.schedule)[-1]
        bounded = last_noise and self.clip_pixel is not None
        largest = 2 / 255 * math.sqrt(math.pi / 2) * self.clip_pixel if bounded else math.inf  # type: ignore[operator]
        x0, noise = self.clean_and_noise(Reverse(denoiser, x_t, labels, step, q, largest), normal)
        return q.mean(x0.clamp(-1, 1) if self.clip else x0, x_t) + noise


def checked_clip_pixel(clip_pixel: float | None) -> float | None:
    """The argument.

    Raises:
        ValueError: it is not positive.
    """
    if clip_pixel is not None and not 0 < clip_pixel < math.inf:
        raise ValueError(f"clip_pixel={clip_pixel!r}; expected a positive number of grey levels (2 or 1), or None")
    return clip_pixel
