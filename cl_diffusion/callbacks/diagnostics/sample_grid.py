"""A grid of generated images, a row a class."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from cl_diffusion.callbacks.diagnostics.logged_pictures import log_picture
from cl_diffusion.whole_files import written_whole


def log_grid(trainer: Trainer, images: Tensor, labels: Tensor, path: Path, columns: int = 10) -> None:
    """Write the first ``columns`` images of each class as PNG, and hand them to every logger that takes images.

    Args:
        trainer: whose loggers.
        images: ``(N, C, H, W)`` in [-1, 1].
        labels: ``(N,)``; rows are in ascending order of the label.
        path: of the PNG; in the logger its tag is ``samples``.
        columns: images of a class at most.
    """
    grid = sample_grid(images, labels, columns)
    _write_png(grid, path, [int(label) for label in labels.unique()])
    log_picture(trainer, "samples", lambda: grid)


def sample_grid(images: Tensor, labels: Tensor, columns: int = 10, least_side: int = 32) -> Tensor:
    """``(3, height, width)`` in [0, 1]; images smaller than ``least_side`` are enlarged by whole pixels."""
    from torchvision.utils import make_grid

    zoom = max(1, least_side // images.shape[-1])
    rows = [images[labels == label][:columns] for label in labels.unique().tolist()]
    width = min(columns, max(len(row) for row in rows))
    blank = images.new_full((1, *images.shape[1:]), -1.0)
    padded = torch.cat([torch.cat([row, blank.expand(width - len(row), -1, -1, -1)]) for row in rows])
    pixels = (
        ((padded.detach().float().cpu().clamp(-1, 1) + 1) / 2).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    )
    grid: Tensor = make_grid(pixels, nrow=width, padding=2, pad_value=0.5)
    return grid


def _write_png(grid: Tensor, path: Path, classes: list[int]) -> None:
    """With the class of each row as its text ``rows``."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("rows", " ".join(map(str, classes)))
    pixels = (grid * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    with written_whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", pnginfo=about)
