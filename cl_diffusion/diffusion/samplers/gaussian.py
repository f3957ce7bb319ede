"""Reverse steps that are Gaussian: one mean, and a covariance that each sampler chooses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.posterior import Posterior, posterior
from cl_diffusion.diffusion.samplers.sampler import Sampler, Step
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps

Normal = Callable[[], Tensor]
Gradient = Callable[[Tensor, int], Tensor]


class Reverse(NamedTuple):
    """One reverse step of a batch: where it starts, its coefficients, and the largest standard deviation allowed."""

    denoiser: Denoiser
    x_t: Tensor
    labels: Tensor | None
    step: Step
    posterior: Posterior
    largest: float = math.inf


class Covariance(ABC):
    """The covariance ``Sigma'`` of a step's noise, found together with the estimate of the clean image.

    Attributes:
        x0: ``E[x0 | x_t]`` of the denoiser, not clamped.
    """

    x0: Tensor

    @abstractmethod
    def noise(self, normal: Normal) -> Tensor:
        """Noise of this covariance; ``normal()`` is fresh N(0, I), shaped as the images."""

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """``Sigma' v``, shaped as the images; ``Sigma'`` is that of the noise once this has been drawn."""


class Elementwise(Covariance):
    """A variance for each element, or one for all.

    Args:
        x0: the denoiser's estimate.
        variance: shaped as the images, or a number.
        largest: bound on its root.
    """

    def __init__(self, x0: Tensor, variance: Tensor | float, largest: float = math.inf) -> None:
        self.x0 = x0
        given = variance if isinstance(variance, Tensor) else x0.new_tensor(variance)
        self.variance = given.to(x0).clamp(max=largest * largest)

    @override
    def noise(self, normal: Normal) -> Tensor:
        return self.variance.sqrt() * normal()

    @override
    def product(self, v: Tensor) -> Tensor:
        return self.variance * v


class GaussianSampler(Sampler):
    """``x_s = c0 x0hat + c1 x_t + noise``, with ``noise ~ N(0, Sigma')``; the last step returns the mean.

    The mean is the posterior's at the estimated clean image, for any pair (s, t) (see ``Posterior``). With the exact
    ``x0hat = E[x0 | x_t]``, the covariance of ``q(x_s | x_t)`` is ``Sigma = variance I + c0^2 Cov[x0 | x_t]``; samplers
    differ in how they come by ``Cov[x0 | x_t]``.

    Args:
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        clip_pixel: bounds the standard deviation of the last noise that is added, by ``2/255 sqrt(pi/2) clip_pixel``
            (Bao et al. 2022, 2201.06503, appendix F); None does not. It decides the quality of few steps.
        eta: of the process that is reversed, in [0, 1]: 1 is the Markov chain of Ho et al. 2020, 0 the one of Song et
            al. 2021 whose ``q(x_s | x_t, x0)`` has no noise.

    Raises:
        ValueError: ``clip_pixel`` is not positive, or ``eta`` not in [0, 1].
    """

    def __init__(
        self, steps: Steps, clip: bool, spacing: Spacing, clip_pixel: float | None = None, eta: float = 1.0
    ) -> None:
        if clip_pixel is not None and not 0 < clip_pixel < math.inf:
            raise ValueError(f"clip_pixel={clip_pixel!r}; expected a positive number of grey levels (2 or 1), or None")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: expected a value in [0, 1], from deterministic to ancestral.")
        self.steps = steps
        self.clip = clip
        self.spacing: Spacing = spacing
        self.clip_pixel = clip_pixel
        self.eta = eta

    @abstractmethod
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        """The denoiser's estimate at ``x_t``, and the covariance of the step; ``normal()`` is fresh N(0, I)."""

    @final
    @override
    def step(self, denoiser: Denoiser, x_t: Tensor, labels: Tensor | None, step: Step, normal: Normal) -> Tensor:
        return self.tilted_step(denoiser, x_t, labels, step, normal, None)

    @final
    def tilted_step(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        labels: Tensor | None,
        step: Step,
        normal: Normal,
        gradient: Gradient | None,
    ) -> Tensor:
        """``step``, its density multiplied by ``exp f(x_s)`` to first order: the mean moves by ``Sigma' grad f(mean)``.

        Args:
            denoiser: of ``Sampler.step``, as are the next four.
            x_t: noisy images.
            labels: of the images.
            step: from where to where.
            normal: of noise.
            gradient: ``grad f`` at ``(x_s, s)``; None is no tilt. The last step, which adds no noise, has none.
        """
        q = posterior(denoiser.schedule, step.s, step.t, self.eta)
        if step.s == -1:
            x0, _ = denoiser.estimates_at(x_t, step.t, labels)
            return q.mean(self._clipped(x0), x_t)
        bounded = self.clip_pixel is not None and step.s == self.timesteps(denoiser.schedule)[-1]
        largest = 2 / 255 * math.sqrt(math.pi / 2) * self.clip_pixel if bounded else math.inf  # type: ignore[operator]
        covariance = self.covariance(Reverse(denoiser, x_t, labels, step, q, largest), normal)
        mean, noise = q.mean(self._clipped(covariance.x0), x_t), covariance.noise(normal)
        if gradient is not None:
            mean = mean + covariance.product(gradient(mean, step.s))
        return mean + noise

    def _clipped(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1) if self.clip else x0


def most_variance(mean: Tensor) -> Tensor:
    """What an element in [-1, 1] of this mean can have: ``1 - mean^2`` (Bhatia & Davis 2000), 0 for a mean beyond."""
    return (1 - mean.square()).clamp(min=0.0)
