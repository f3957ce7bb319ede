"""Samplers: from noise to images, one step rule a file."""

from __future__ import annotations

from cl_diffusion.diffusion.samplers.analytic import AnalyticSampler, NoiseStatistics
from cl_diffusion.diffusion.samplers.ancestral import AncestralSampler
from cl_diffusion.diffusion.samplers.ddim import DDIMSampler
from cl_diffusion.diffusion.samplers.guidance import ClassifierFreeGuidance, ClassifierGuidance
from cl_diffusion.diffusion.samplers.hutchinson import HutchinsonSampler
from cl_diffusion.diffusion.samplers.lanczos import LanczosGaussianSampler
from cl_diffusion.diffusion.samplers.sampler import Sampler

__all__ = [
    "AnalyticSampler",
    "AncestralSampler",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DDIMSampler",
    "HutchinsonSampler",
    "LanczosGaussianSampler",
    "NoiseStatistics",
    "Sampler",
]
