"""Somebody else's project: no diffusion, no task stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset


class Regression(LightningModule):
    """A small regression with a loss of each sample."""

    def __init__(self, optimizer: Callable[..., Optimizer] = SGD, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer = optimizer
        self.options = options

    def per_sample_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), **{"lr": 0.05, **self.options})


def loader(seed: int, samples: int = 24) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator)
    return DataLoader(TensorDataset(x, x @ torch.randn(3, 1, generator=generator)), batch_size=8)


def trainer(*callbacks: Callback, max_epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_checkpointing=options.pop("enable_checkpointing", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def fit_tasks(
    model: LightningModule, *callbacks: Callback, tasks: Iterable[int] = (0, 1), **options: Any
) -> LightningModule:
    """Every fit is a task."""
    for seed in tasks:
        trainer(*callbacks, **options).fit(model, loader(seed))
    return model
