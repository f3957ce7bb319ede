"""LightningModules."""

from cl_diffusion.modules.ddpm import DDPM

__all__ = ["DDPM"]
