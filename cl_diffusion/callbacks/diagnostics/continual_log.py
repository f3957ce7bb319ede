"""The continual matrices in loggers, as figures of a step and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lightning.pytorch import Trainer

from cl_diffusion.callbacks.diagnostics.logged_pictures import log_figures
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures import draw_curves, draw_matrices
from cl_diffusion.report.summary import named


def log_matrices(trainer: Trainer, matrices: Mapping[str, ContinualMatrix], title: str) -> None:
    """Under ``continual/METRIC/``: each task, average and forgetting; matrix and curves where pictures are taken."""
    numbers: dict[str, float] = {}
    for name, matrix in matrices.items():
        now = {task: value for (after, task), value in matrix.entries.items() if after == matrix.last}
        figures = {f"task_{task}": value for task, value in now.items()}
        figures |= {"average": matrix.average(), "forgetting": matrix.forgetting()}
        numbers |= {f"continual/{name}/{figure}": value for figure, value in figures.items()}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
    for name, matrix in matrices.items():
        for kind, draw in (("matrix", draw_matrices), ("curves", draw_curves)):
            log_figures(trainer, {f"continual/{name}/{kind}": partial(draw, {title: matrix}, named(name))})
