"""The denoising loss, with a term by which the network learns the variance of a reverse step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr
from typing_extensions import override

from cl_diffusion.diffusion.bands import SNRBand
from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.loss import DenoisingLoss, DrawnBatch, Reduction
from cl_diffusion.diffusion.prediction import x0_and_noise
from cl_diffusion.diffusion.schedule import NoiseSchedule

_SMALLEST = 1e-12


class HybridLoss(DenoisingLoss):
    """``L_simple + weight T L_t``, the variational bound's gradient for the variance alone (2102.09672, eq. 16).

    ``L_t`` is the term of the drawn timestep in bits a dimension, reduced over elements as the squared error is:
    ``KL(q(x_{t-1} | x_t, x0) || N(mean, Sigma'))``, and at ``t = 0`` the negative log-likelihood of the image's 8-bit
    grey levels. With uniform ``t`` its mean times ``T`` is the bound but for the prior's term. The mean is detached, so
    that ``L_simple`` alone trains it.

    Args:
        weight: of the bound; 0.001 there.
        band: of ``DenoisingLoss``.
        reduction: of ``DenoisingLoss``.

    Raises:
        ValueError: the weight is not positive, or the reduction is unknown.
    """

    def __init__(self, weight: float = 1e-3, band: SNRBand | None = None, reduction: Reduction = "mean") -> None:
        super().__init__(band, reduction)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight={weight!r}; expected a positive number, such as 0.001")
        self.weight = weight

    @override
    def __call__(self, denoiser: Denoiser, drawn: DrawnBatch) -> Tensor:
        """The loss of each sample, ``(B,)``.

        Raises:
            ValueError: the denoiser's network returns no variance.
        """
        t, schedule = drawn.timesteps, denoiser.schedule
        x_t = schedule.add_noise(drawn.images, drawn.noise, t)
        prediction, variance = denoiser.output(x_t, t, drawn.labels)
        if variance is None:
            raise ValueError("the hybrid loss needs a Denoiser(learned_variance=True)")
        x0, _ = x0_and_noise(denoiser.prediction, prediction.detach().to(x_t), x_t, schedule.scales(t, like=x_t))
        bound = bits(schedule, drawn.images, x0, variance.to(x_t), t)
        factor = 0.5 * bound[0].numel() if self.reduction == "half_sum" else 1.0
        simple = self.reduced(prediction, self.target(denoiser, drawn))
        return simple + self.weight * schedule.num_steps * factor * bound.flatten(1).mean(1)

    @override
    def describe(self, schedule: NoiseSchedule) -> dict[str, str]:
        return {**super().describe(schedule), "variational_bound": f"{self.weight:.6g} of it, for the variance"}


class _Tables(NamedTuple):
    """Of the steps from each timestep to the one before, ``(T,)``: ``log beta``, ``log beta_tilde`` and ``c0^2``."""

    log_beta: Tensor
    log_beta_tilde: Tensor
    c0_squared: Tensor


def bits(schedule: NoiseSchedule, images: Tensor, x0: Tensor, variance: Tensor, t: Tensor) -> Tensor:
    """``L_t`` of each element, in bits, ``(B, C, H, W)``.

    Args:
        schedule: of the noising.
        images: clean, ``(B, C, H, W)``.
        x0: the estimates of them.
        variance: ``2 v - 1`` of ``Sigma' = exp(v log beta + (1 - v) log beta_tilde)``, shaped likewise. At ``t = 0``,
            where ``beta_tilde`` is 0, that of ``t = 1`` stands in.
        t: int64 ``(B,)``.
    """
    tables = (table.to(images, non_blocking=True) for table in _tables(schedule))
    log_beta, floor, c0_squared = (table[t].reshape(-1, 1, 1, 1) for table in tables)
    v = (variance + 1) / 2
    logarithm = v * log_beta + (1 - v) * floor
    error = c0_squared * (images - x0).square()
    divergence = 0.5 * (logarithm - floor - 1 + (floor - logarithm).exp() + error * (-logarithm).exp())
    likelihood = grey_level_likelihood(images, x0, (0.5 * logarithm).exp())
    return torch.where(t.reshape(-1, 1, 1, 1) == 0, -likelihood, divergence) / math.log(2)


def grey_level_likelihood(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The log-probability, in nats, that ``N(mean, std^2)`` gives to the interval of each element's 8-bit grey level.

    Levels lie at ``2 n / 255 - 1``; the darkest and brightest interval have no end (Ho et al. 2020, eq. 13).
    """
    below, above = (images - 1 / 255 - mean) / std, (images + 1 / 255 - mean) / std
    inner = (ndtr(above) - ndtr(below)).clamp(min=_SMALLEST).log()
    return torch.where(images < -0.999, log_ndtr(above), torch.where(images > 0.999, log_ndtr(-below), inner))


def _tables(schedule: NoiseSchedule) -> _Tables:
    abar = schedule.alpha_bar
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    beta = 1 - abar / before
    beta_tilde = beta * (1 - before) / (1 - abar)
    beta_tilde[0] = beta_tilde[min(1, len(beta_tilde) - 1)]
    return _Tables(beta.log(), beta_tilde.clamp(min=_SMALLEST).log(), before * (beta / (1 - abar)).square())
