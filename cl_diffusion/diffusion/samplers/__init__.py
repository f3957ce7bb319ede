"""Samplers: from noise to images, one step rule a file."""

from __future__ import annotations

from cl_diffusion.diffusion.samplers.analytic import AnalyticSampler, NoiseStatistics
from cl_diffusion.diffusion.samplers.ancestral import AncestralSampler
from cl_diffusion.diffusion.samplers.ddim import DDIMSampler
from cl_diffusion.diffusion.samplers.gaussian import Covariance, GaussianSampler
from cl_diffusion.diffusion.samplers.guidance import ClassifierFreeGuidance, ClassifierGuidance
from cl_diffusion.diffusion.samplers.hutchinson import HutchinsonSampler
from cl_diffusion.diffusion.samplers.lanczos import LanczosGaussianSampler
from cl_diffusion.diffusion.samplers.learned_diagonal import LearnedDiagonalSampler
from cl_diffusion.diffusion.samplers.learned_variance import LearnedVarianceSampler
from cl_diffusion.diffusion.samplers.sampler import Sampler

__all__ = [
    "AnalyticSampler",
    "AncestralSampler",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Covariance",
    "DDIMSampler",
    "GaussianSampler",
    "HutchinsonSampler",
    "LanczosGaussianSampler",
    "LearnedDiagonalSampler",
    "LearnedVarianceSampler",
    "NoiseStatistics",
    "Sampler",
]
