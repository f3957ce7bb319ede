"""Training steps whose random draws are a function of the fit's seed and the step's number."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from typing_extensions import override

from cl_diffusion.keys import derive_keys


class SeededSteps(LightningModule):
    """Seeds torch's global generators before every training step from (seed of the fit, steps so far, process).

    So a resumed fit draws what the uninterrupted one does, and no two processes draw the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._batches = 0

    @override
    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        key = derive_keys(self._seed, torch.tensor([self._batches]), draw=self.global_rank, purpose="training")
        self._seed_generators(int(key))
        self._batches += 1

    def _seed_generators(self, seed: int) -> None:
        """``torch.manual_seed``, but for kinds of device that this is not on: each would note down the call stack."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        elif self.device.type != "cpu":
            torch.manual_seed(seed)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self._batches

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._batches = checkpoint.get("batches", 0)
