"""LightningModules."""

from cl_diffusion.modules.ddpm import DDPM
from cl_diffusion.modules.distillation import DistillationMixin
from cl_diffusion.modules.distilled_ddpm import DistilledDDPM

__all__ = ["DDPM", "DistillationMixin", "DistilledDDPM"]
