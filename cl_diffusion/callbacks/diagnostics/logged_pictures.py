"""Pictures for loggers that take some, such as TensorBoard's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_picture(trainer: Trainer, name: str, picture: Callable[[], Tensor]) -> None:
    """Hand a picture ``(3, height, width)`` in [0, 1] to every logger that takes images; drawn only where one does."""
    takers = [taker for logger in trainer.loggers if (taker := _taker(logger)) is not None]
    if takers:
        drawn = picture()
        for take in takers:
            take(name, drawn, trainer.global_step)


def log_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Likewise a matplotlib figure."""
    log_picture(trainer, name, lambda: pixels(draw()))


def log_files(trainer: Trainer, folder: Path, name: str) -> None:
    """Likewise every PNG of a folder, as ``name/...``."""
    from PIL import Image

    for path in sorted(folder.glob("*.png")):
        log_picture(trainer, f"{name}/{path.stem}", lambda path=path: _tensor(Image.open(path).convert("RGB")))  # type: ignore[misc]


def pixels(figure: Figure) -> Tensor:
    """A figure as ``(3, height, width)`` in [0, 1], on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return _tensor(canvas.buffer_rgba())[:3]


def _tensor(rows: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(rows, dtype=np.float32) / 255).movedim(-1, 0)


def _taker(logger: Logger) -> Callable[[str, Tensor, int], Any] | None:
    log_image: Any = getattr(logger, "log_image", None)
    if callable(log_image):
        return lambda name, picture, step: log_image(key=name, images=[picture], step=step)
    add_image: Any = getattr(getattr(logger, "experiment", None), "add_image", None)
    return add_image if callable(add_image) else None
