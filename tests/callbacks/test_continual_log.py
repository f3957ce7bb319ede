from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cl_diffusion.callbacks.diagnostics.continual_log import log_matrices
from cl_diffusion.metrics import ContinualMatrix


def test_a_band_that_was_not_measured_now_is_not_told_again() -> None:
    logged: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda figures, step: logged.update(figures), experiment=None)
    trainer: Any = SimpleNamespace(loggers=[logger], global_step=10)
    whole = ContinualMatrix("denoising_loss", False, {(1, 1): 0.1, (2, 1): 0.3, (2, 2): 0.2})
    band = ContinualMatrix("denoising_loss/low", False, {(1, 1): 0.1})
    partly = ContinualMatrix("denoising_loss/high", False, {(1, 1): 0.1, (2, 1): 0.2})
    log_matrices(trainer, {each.name: each for each in (whole, band, partly)}, after=2, num_tasks=2)
    assert logged["continual/denoising_loss/task_2"] == 0.2
    assert logged["continual/denoising_loss/average"] == 0.25
    assert logged["continual/denoising_loss/high/forgetting"] == 0.1
    assert not any("/low/" in name for name in logged)
