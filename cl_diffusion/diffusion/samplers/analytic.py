"""One variance a timestep, the best there is, estimated on data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.samplers.gaussian import Covariance, Elementwise, GaussianSampler, Normal, Reverse
from cl_diffusion.diffusion.samplers.trajectory import Spacing, Steps
from cl_diffusion.evaluation_mode import evaluation_mode


class NoiseStatistics:
    """``Gamma_t = E |epshat(x_t, t)|^2 / d`` of a denoiser on data, at some timesteps (Bao et al. 2022, 2201.06503).

    They belong to the denoiser and the data: after another task they have to be estimated anew.

    Args:
        gamma: float64 ``(T,)``, NaN where it was not estimated.
    """

    def __init__(self, gamma: Tensor) -> None:
        self.gamma = gamma

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        denoiser: Denoiser,
        images: Tensor,
        labels: Tensor | None,
        timesteps: Sequence[int],
        generator: torch.Generator,
        batch_size: int = 250,
    ) -> NoiseStatistics:
        """Estimate them on images ``(N, C, H, W)`` in [-1, 1], real or replayed, one draw of noise each.

        Args:
            denoiser: in evaluation mode meanwhile.
            images: the data.
            labels: int64 ``(N,)`` or None.
            timesteps: where to; those that a sampler visits.
            generator: of the noise.
            batch_size: images at a time.
        """
        gamma = torch.full((denoiser.schedule.num_steps,), math.nan, dtype=torch.float64)
        with evaluation_mode(denoiser):
            for t in timesteps:
                total = 0.0
                for start in range(0, len(images), batch_size):
                    x0 = images[start : start + batch_size].to(denoiser.device)
                    own = None if labels is None else labels[start : start + batch_size].to(denoiser.device)
                    noise = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
                    when = torch.full((len(x0),), t, device=x0.device)
                    x_t = denoiser.schedule.add_noise(x0, noise, when).to(denoiser.dtype)
                    total += float(denoiser.x0_and_noise(x_t, when, own)[1].double().square().sum())
                gamma[t] = total / images.numel()
        return cls(gamma)

    def save(self, path: str | Path) -> None:
        """As safetensors."""
        from safetensors.torch import save_file

        save_file({"gamma": self.gamma}, path)

    @classmethod
    def load(cls, path: str | Path) -> NoiseStatistics:
        """What ``save`` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return cls(load_file(path)["gamma"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"statistics={str(path)!r} are none ({type(error).__name__}: {error}); expected a file that "
                "NoiseStatistics.save wrote"
            ) from error


class AnalyticSampler(GaussianSampler):
    """``noise = sigma_t z``, ``sigma_t^2 = variance + c0^2 (1 - abar) / abar (1 - Gamma_t)`` (2201.06503, theorem 1).

    The best variance of one number a timestep. ``Cov[x0 | x_t]`` is taken for between 0 and 1, as images in [-1, 1]
    have it (theorem 2).

    Args:
        statistics: ``Gamma``, or the file it was saved to.
        steps: number of steps, or the timesteps themselves; None: every timestep of the schedule.
        clip: clamp the estimate of the clean image to [-1, 1] in each step.
        clip_pixel: see ``GaussianSampler``.
        spacing: of the steps, ``"even"`` or ``"quadratic"``.
        eta: see ``GaussianSampler``.

    Raises:
        ValueError: ``clip_pixel`` is not positive, or ``eta`` not in [0, 1]; in
            sampling: a timestep without statistics.
    """

    def __init__(
        self,
        statistics: NoiseStatistics | str,
        steps: Steps = 25,
        clip: bool = True,
        clip_pixel: float | None = 2.0,
        spacing: Spacing = "even",
        eta: float = 1.0,
    ) -> None:
        super().__init__(steps, clip, spacing, clip_pixel, eta)
        self.statistics = NoiseStatistics.load(statistics) if isinstance(statistics, str) else statistics

    @override
    def covariance(self, reverse: Reverse, normal: Normal) -> Covariance:
        t, q, gamma = reverse.step.t, reverse.posterior, self.statistics.gamma
        abar = reverse.denoiser.schedule.alpha_bar_at(t)
        clean = min(max((1 - abar) / abar * (1 - float(gamma[t])), 0.0), 1.0)
        x0, _ = reverse.denoiser.estimates_at(reverse.x_t, t, reverse.labels)
        return Elementwise(x0, q.variance + q.c0**2 * clean, reverse.largest)

    @override
    def check(self, denoiser: Denoiser) -> None:
        known = (~self.statistics.gamma.isnan()).nonzero().flatten().tolist()
        if missing := [t for t in self.timesteps(denoiser.schedule)[:-1] if t not in known]:
            raise ValueError(
                f"statistics are known at timesteps {known}, and the chain visits {missing[0]}: estimate them at "
                "sampler.timesteps(denoiser.schedule)"
            )
