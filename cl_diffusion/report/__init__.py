"""What runs have written, as one page to look at."""

from cl_diffusion.report.page import write_report
from cl_diffusion.report.run import Run

__all__ = ["Run", "write_report"]
