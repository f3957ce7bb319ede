"""What runs have measured, as matplotlib figures: for the page, and for loggers as a run goes."""

from cl_diffusion.report.figures.cost import draw_cost
from cl_diffusion.report.figures.curves import draw_averages, draw_curves
from cl_diffusion.report.figures.front import Point, draw_front
from cl_diffusion.report.figures.heat_map import draw_matrices
from cl_diffusion.report.figures.plasticity import by_layer, draw_plasticity
from cl_diffusion.report.figures.training import draw_training

__all__ = [
    "Point",
    "by_layer",
    "draw_averages",
    "draw_cost",
    "draw_curves",
    "draw_front",
    "draw_matrices",
    "draw_plasticity",
    "draw_training",
]
