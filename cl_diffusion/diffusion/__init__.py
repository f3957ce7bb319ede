"""Diffusion models in discrete time: schedule, denoiser, loss. Torch only."""

from __future__ import annotations

from cl_diffusion.diffusion.bands import SNRBand, SNRBands, quantile_bands
from cl_diffusion.diffusion.denoiser import Denoiser
from cl_diffusion.diffusion.loss import DenoisingLoss, DrawnBatch, Reduction
from cl_diffusion.diffusion.prediction import Prediction
from cl_diffusion.diffusion.schedule import NoiseSchedule

__all__ = [
    "Denoiser",
    "DenoisingLoss",
    "DrawnBatch",
    "NoiseSchedule",
    "Prediction",
    "Reduction",
    "SNRBand",
    "SNRBands",
    "quantile_bands",
]
