"""A classifier that is judged on each batch before it learns from it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from cl_diffusion.keys import KeyedBatch
from cl_diffusion.modules.factory import factory
from cl_diffusion.modules.fresh_averages import FreshAverages
from cl_diffusion.plain_hyperparameters import PlainHyperparameters


class OnlineClassifier(PlainHyperparameters, FreshAverages):
    """Cross-entropy of a network on ``(images, labels)``, images in [-1, 1]; the network gets them in [0, 1].

    ``task_figures``, for ``PlasticityMetrics``, has ``online_accuracy``: the share of training samples that the network
    told right as they came, before the step that learns from them; of all processes together.

    Args:
        network: from images to logits.
        optimizer: from parameters to an optimizer; the default is Adam at 1e-3.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.network = network
        self._optimizer = factory(optimizer)
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

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The accuracy on held-out samples, ``val_accuracy``; of several loaders, each one's."""
        self._judge(batch, "val_accuracy")

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The accuracy on held-out samples, ``test_accuracy``; of several loaders, each one's."""
        self._judge(batch, "test_accuracy")

    def _judge(self, batch: Any, name: str) -> None:
        images, labels = batch.batch if isinstance(batch, KeyedBatch) else batch
        right = self.network((images + 1) / 2).argmax(1) == labels
        self.log(
            name, right.double().mean().float(), on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True
        )

    def task_figures(self) -> dict[str, float]:
        """Of the task that ends: ``online_accuracy``; counted anew from here."""
        right, seen = self._counted()
        self.right = self.seen = 0
        return {"online_accuracy": right / seen} if seen else {}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["online"] = self._counted()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        first = self.global_rank == 0  # the counts of all processes, of which one goes on with them
        self.right, self.seen = checkpoint.get("online", (0, 0)) if first else (0, 0)

    def _counted(self) -> tuple[int, int]:
        """By all processes, each of which has to ask."""
        counts = torch.tensor([int(self.right), self.seen], device=self.device)
        if self._trainer is not None:
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        right, seen = counts.tolist()
        return int(right), int(seen)

    @override
    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters) if self._optimizer is None else self._optimizer(parameters)
