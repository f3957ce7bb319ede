"""Images drawn by ``predict``, as a picture and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from typing_extensions import override

from cl_diffusion.callbacks.diagnostics.sample_grid import log_grid


class PredictionWriter(BasePredictionWriter):
    """Writes ``images.png`` (a row a class) and ``images.safetensors`` (``images`` in [-1, 1], ``labels``).

    Into ``predict_0``, ``predict_1``, ...: the first that is not there yet. On several processes each writes its share,
    ``images_RANK``.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="epoch")
        self.folder = folder

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        images = torch.cat([images.cpu() for images, _ in predictions])
        labels = torch.cat([labels.cpu() for _, labels in predictions])
        folder = self.folder / f"predict_{trainer.strategy.broadcast(self._first_free_number())}"
        share = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        log_grid(trainer, images, labels, folder / f"images{share}.png")
        save_file({"images": images.contiguous(), "labels": labels}, folder / f"images{share}.safetensors")
        rank_zero_info(f"{len(images)} images in {folder}")

    def _first_free_number(self) -> int:
        taken = {path.name for path in self.folder.glob("predict_*")}
        return next(n for n in range(len(taken) + 1) if f"predict_{n}" not in taken)
