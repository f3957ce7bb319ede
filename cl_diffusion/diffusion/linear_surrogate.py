"""The best denoiser that only scales its input: what is left of any at low signal-to-noise ratio."""

from __future__ import annotations

from torch import Tensor

from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.loss import DrawnBatch
from cl_diffusion.diffusion.prediction import training_target
from cl_diffusion.diffusion.schedule import Scales


def noise_scale(scales: Scales, second_moment: float) -> Tensor:
    """``kappa_t = sqrt(1 - abar) / (abar m + 1 - abar)``: ``kappa x_t`` is nearest to the noise in mean square.

    ``m = E|x0|^2 / d``. As ``abar`` goes to 0 it is ``1 / sqrt(1 - abar)`` but for terms of its order. Shape of the
    scales.
    """
    kappa: Tensor = scales.noise / (scales.signal**2 * second_moment + scales.noise**2)
    return kappa


def linear_output(denoiser: Denoiser, drawn: DrawnBatch, second_moment: float) -> Tensor:
    """What a denoiser that multiplies ``x_t`` by the best number of its timestep predicts, ``(B, ...)``.

    The noise by ``noise_scale``, the clean image by ``sqrt(abar) m / (abar m + 1 - abar)``, ``v`` by both.
    """
    schedule = denoiser.schedule
    scales = schedule.scales(drawn.timesteps, like=drawn.images)
    x_t = schedule.add_noise(drawn.images, drawn.noise, drawn.timesteps)
    noise = noise_scale(scales, second_moment) * x_t
    power = scales.signal**2 * second_moment + scales.noise**2
    image = scales.signal * second_moment / power * x_t
    return training_target(denoiser.prediction, image, noise, scales)
