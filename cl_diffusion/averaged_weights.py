"""The averaged weights that a ``WeightAveraging`` callback keeps beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging


@contextmanager
def averaged_weights(trainer: Trainer | None) -> Iterator[None]:
    """The trainer's module with its averaged weights inside, and with its own again on leaving, errors included.

    Its own all along where no ``WeightAveraging`` (Lightning's, such as ``EMAWeightAveraging``) averages yet.
    """
    of_checkpoints = _averaging(trainer)[-1:]  # of several, the last one's are in a checkpoint
    averaging = next((each for each in of_checkpoints if int(each._average_model.n_averaged) > 0), None)
    if trainer is None or averaging is None:
        yield
        return
    averaging._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        averaging._swap_models(trainer.lightning_module)


def restart_average(trainer: Trainer) -> None:
    """The next update of each average copies the weights, so that it holds nothing from before."""
    for each in _averaging(trainer):
        each._average_model.n_averaged.zero_()


def _averaging(trainer: Trainer | None) -> list[Any]:
    callbacks: list[Any] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]
