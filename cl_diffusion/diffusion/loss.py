"""The denoising loss, one value a sample, and the random draws that it is a deterministic function of."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from cl_diffusion.diffusion.bands import SNRBand
from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.image_batch import require_images
from cl_diffusion.diffusion.prediction import training_target
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.keys import keyed_integers, keyed_normal

Reduction = Literal["mean", "half_sum"]


class DrawnBatch(NamedTuple):
    """A batch with all its random draws made: what the loss needs, and nothing random left.

    ``images``: clean, ``(B, C, H, W)``, in [-1, 1]. ``labels``: int64 ``(B,)`` or None. ``timesteps``: int64 ``(B,)``.
    ``noise``: standard normal, of the shape of ``images``. ``log_snr``: of the timesteps, ``(B,)``, for bands.
    """

    images: Tensor
    labels: Tensor | None
    timesteps: Tensor
    noise: Tensor
    log_snr: Tensor | None = None


class DenoisingLoss:
    """The simple loss ``l_i = mean over elements of (f(x_t, t) - target)^2`` (Ho et al. 2020, eq. 14, divided by d).

    One draw of ``t``, uniform, and ``eps ~ N(0, I)`` for each sample.

    Args:
        band: restrict ``t`` to the timesteps of this band; None is all of them.
        reduction: ``"mean"`` over elements, or ``"half_sum"``, half their sum, which is ``d/2`` times that. A strength
            of a quadratic penalty that is stated for half sums is ``d/2`` times smaller than for means.

    Raises:
        ValueError: the reduction is unknown.
    """

    def __init__(self, band: SNRBand | None = None, reduction: Reduction = "mean") -> None:
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction={reduction!r}: expected one of {', '.join(map(repr, get_args(Reduction)))}.")
        self.band = band
        self.reduction: Reduction = reduction

    def draw(
        self,
        schedule: NoiseSchedule,
        images: Tensor,
        labels: Tensor | None = None,
        keys: Tensor | None = None,
        band: SNRBand | None = None,
    ) -> DrawnBatch:
        """Draw a timestep and noise for each image.

        Args:
            schedule: whose timesteps to draw from.
            images: floating point ``(B, C, H, W)``, in [-1, 1].
            labels: int64 ``(B,)``, passed through.
            keys: int64 ``(B,)`` from ``cl_diffusion.keys.derive_keys``. The draws of sample i are then a function of
                ``keys[i]`` alone, the same on every device. None draws from torch's generator of the images' device.
            band: in place of the loss's own.

        Raises:
            TypeError: images or labels are no tensors.
            ValueError: images or labels are of another type or shape, keys are not one an image, or the band is empty.
        """
        require_images(images, labels)
        if keys is not None and keys.shape != images.shape[:1]:
            raise ValueError(f"keys have shape {tuple(keys.shape)}: expected ({len(images)},), one key an image.")
        chosen = band or self.band
        allowed = None if chosen is None else chosen.timesteps(schedule)
        count = schedule.num_steps if allowed is None else len(allowed)
        if keys is None:
            choice = torch.randint(count, images.shape[:1], device=images.device)
            noise = torch.randn_like(images)
        else:
            choice = keyed_integers(keys, count).to(images.device)
            noise = keyed_normal(keys, tuple(images.shape[1:])).to(images)
        timesteps = choice if allowed is None else allowed.to(images.device)[choice]
        return DrawnBatch(images, labels, timesteps, noise, schedule.log_snr.to(images.device)[timesteps])

    def __call__(self, denoiser: Denoiser, drawn: DrawnBatch) -> Tensor:
        """The loss of each sample, ``(B,)``: reduced over the elements of its prediction, not averaged over samples."""
        return self.reduced(self.output(denoiser, drawn), self.target(denoiser, drawn))

    def reduced(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of each sample: ``(B,)`` from two ``(B, ...)``."""
        squared_error = (output - target).square().flatten(1)
        return squared_error.mean(1) if self.reduction == "mean" else squared_error.sum(1) / 2

    def output(self, denoiser: Denoiser, drawn: DrawnBatch) -> Tensor:
        """The network's prediction for each sample, of the shape of the images."""
        t = drawn.timesteps
        prediction: Tensor = denoiser(denoiser.schedule.add_noise(drawn.images, drawn.noise, t), t, drawn.labels)
        return prediction

    def target(self, denoiser: Denoiser, drawn: DrawnBatch) -> Tensor:
        """What the prediction is trained towards, of the shape of the images."""
        scales = denoiser.schedule.scales(drawn.timesteps, like=drawn.images)
        return training_target(denoiser.prediction, drawn.images, drawn.noise, scales)

    def describe(self, schedule: NoiseSchedule) -> dict[str, str]:
        """What an estimate made with this loss is an estimate of: equal for equal laws, so fit to be compared."""
        last = schedule.num_steps - 1
        low, high = (0, last) if self.band is None else self.band.timesteps(schedule)[[0, -1]].tolist()
        return {
            "noise_schedule": schedule.extra_repr(),
            "timestep_law": f"uniform over t = {low}..{high} of 0..{last}",
            "loss_reduction": {"mean": "mean over elements", "half_sum": "half the sum over elements"}[self.reduction],
        }
