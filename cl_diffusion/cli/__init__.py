"""The command ``cl-diffusion``."""

from cl_diffusion.cli.command import ContinualCLI, command_line, main

__all__ = ["ContinualCLI", "command_line", "main"]
