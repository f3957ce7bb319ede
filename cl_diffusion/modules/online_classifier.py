"""A classifier that is judged on each batch before it learns from it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from cl_diffusion.plain_hyperparameters import PlainHyperparameters


class OnlineClassifier(PlainHyperparameters, LightningModule):
    """Cross-entropy of a network on ``(images, labels)``, images in [-1, 1]; the network gets them in [0, 1].

    ``task_figures``, for ``PlasticityMetrics``, has ``online_accuracy``: the share of training samples that the network
    told right as they came, before the step that learns from them.

    Args:
        network: from images to logits.
        optimizer: from parameters to an optimizer; the default is Adam at 1e-3.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.network = network
        self._optimizer = optimizer
        self.right = 0
        self.seen = 0

    def per_sample_loss(self, batch: Any) -> Tensor:
        """The cross-entropy of each sample, ``(B,)``."""
        images, labels = batch
        return functional.cross_entropy(self.network((images + 1) / 2), labels, reduction="none")

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network((images + 1) / 2)
        with torch.no_grad():
            self.right += (logits.argmax(1) == labels).sum()
            self.seen += len(labels)
        return functional.cross_entropy(logits, labels)

    def task_figures(self) -> dict[str, float]:
        """Of the task that ends: ``online_accuracy``; counted anew from here."""
        found = {"online_accuracy": float(self.right) / self.seen} if self.seen else {}
        self.right = self.seen = 0
        return found

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["online"] = (int(self.right), self.seen)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.right, self.seen = checkpoint.get("online", (0, 0))

    @override
    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters) if self._optimizer is None else self._optimizer(parameters)
