"""The continual matrices in loggers, as figures of a step and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lightning.pytorch import Trainer

from cl_diffusion.callbacks.diagnostics.logged_pictures import log_figure
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures import draw_curves, draw_matrices
from cl_diffusion.report.summary import named


def log_matrices(trainer: Trainer, matrices: Mapping[str, ContinualMatrix], after: int, num_tasks: int) -> None:
    """Under ``continual/METRIC/``: each task, average and forgetting; matrix and curves where pictures are taken.

    Of a metric that was not measured after task ``after`` (a band that holds no sample), nothing.
    """
    newest = {name: matrix for name, matrix in matrices.items() if matrix.last == after}
    numbers: dict[str, float] = {}
    for name, matrix in newest.items():
        figures = {f"task_{task}": value for (row, task), value in matrix.entries.items() if row == after}
        figures |= {"average": matrix.average(), "forgetting": matrix.forgetting()}
        numbers |= {f"continual/{name}/{figure}": value for figure, value in figures.items()}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
    title = f"after task {after} of {num_tasks}"
    for name, matrix in newest.items():
        for kind, draw in (("matrix", draw_matrices), ("curves", draw_curves)):
            log_figure(trainer, f"continual/{name}/{kind}", partial(draw, {title: matrix}, named(name)))
