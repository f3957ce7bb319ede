"""The command ``cl-diffusion``."""

from cl_diffusion.cli.command import ContinualCLI, main

__all__ = ["ContinualCLI", "main"]
