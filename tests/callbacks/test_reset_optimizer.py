"""A new optimizer for each task, and otherwise the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.callbacks import ResetOptimizer

DATA = TensorDataset(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))


class Regression(LightningModule):
    """Somebody's module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(folder: Path, *callbacks: Callback, epochs: int = 4, **options: Any) -> tuple[Regression, Trainer]:
    module = Regression()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader(DATA, batch_size=4), **options)
    return module, trainer


def test_a_task_is_trained_as_by_a_new_optimizer(tmp_path: Path) -> None:
    module, trainer = fitted(tmp_path, ResetOptimizer(epochs_per_task=2))
    by_hand = Regression()
    for _ in range(2):
        optimizer = by_hand.configure_optimizers()
        for _ in range(2):
            for rows in DATA.tensors[0].split(4):
                optimizer.zero_grad()
                by_hand.training_step((rows,), 0).backward()
                optimizer.step()
    assert torch.equal(module.net.weight, by_hand.net.weight)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}
    kept, _ = fitted(tmp_path)
    assert not torch.equal(kept.net.weight, by_hand.net.weight)


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_resumed_is_uninterrupted(stopped_after: int, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole, _ = fitted(tmp_path, ResetOptimizer(epochs_per_task=2), saving)
    path = tmp_path / f"epoch={stopped_after}.ckpt"
    resumed, _ = fitted(tmp_path, ResetOptimizer(epochs_per_task=2), ckpt_path=path)
    assert torch.equal(whole.net.weight, resumed.net.weight)
