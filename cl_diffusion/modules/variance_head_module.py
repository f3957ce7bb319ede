"""Training of a variance head on a frozen denoiser, as a LightningModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from cl_diffusion.checkpoint_files import plain_checkpoint
from cl_diffusion.diffusion import DenoisingLoss
from cl_diffusion.diffusion.variance_head import Target, VarianceHead
from cl_diffusion.keys import KeyedBatch, derive_keys, keyed_normal
from cl_diffusion.modules.ddpm import DDPM
from cl_diffusion.modules.factory import factory
from cl_diffusion.modules.seeded_steps import SeededSteps
from cl_diffusion.plain_hyperparameters import PlainHyperparameters

HEAD_FILE = "variance_head.safetensors"

_VALIDATION_SEED = 0


class VarianceHeadModule(PlainHyperparameters, SeededSteps):
    """A ``VarianceHead`` on the denoiser of a trained model, which is frozen and no part of the state.

    Batches are those of ``DDPM``. The head is saved to ``variance_head.safetensors`` in the run's folder when the fit
    ends, for ``LearnedDiagonalSampler``; "val_loss" is its loss on held-out samples, on draws that depend on the
    sample alone.

    Args:
        model: the trained model, or the checkpoint that ``cl-diffusion fit`` has written of it.
        target: what the head regresses: ``"npr"``, ``"sn"`` or ``"ocm"``.
        layer: of the network, whose input the head reads; see ``VarianceHead``.
        width: channels of the head's hidden layers.
        optimizer: from parameters to an optimizer; the default is Adam at 1e-3.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.

    Raises:
        ValueError: the model does not know the shape of its images, or its network has no such layer.
    """

    def __init__(
        self,
        model: DDPM | str,
        target: Target = "ocm",
        layer: str = "conv_out",
        width: int = 64,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        trained = trained_model(model) if isinstance(model, str) else model
        if trained.image_shape is None:
            raise ValueError("the model's image_shape is None: give a model that was trained, or DDPM(image_shape=...)")
        denoiser = trained.denoiser.eval().requires_grad_(False)
        self._frozen = [denoiser]  # in a list, so that it is no part of the state
        self.head = VarianceHead.on(denoiser.network, trained.image_shape[0], target, layer, width)
        self.loss = DenoisingLoss()
        self._held_out = MeanMetric()
        self._optimizer = factory(optimizer)
        self._lr_scheduler = factory(lr_scheduler)

    def per_sample_loss(self, batch: Any, keys: Tensor | None = None) -> Tensor:
        """``(B,)``: the head's squared error, at one uniform timestep a sample; a function of ``keys`` where given."""
        (denoiser,) = self._frozen
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        drawn = self.loss.draw(denoiser.schedule, images, labels, keys)
        if keys is None:
            normal = torch.randn_like(images)
        else:
            normal = keyed_normal(derive_keys(_VALIDATION_SEED, keys, purpose="signs"), tuple(images.shape[1:]))
        return self.head.losses(denoiser, drawn, normal.to(images).sign())

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._frozen[0].to(self.device)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.per_sample_loss(batch).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def on_validation_start(self) -> None:
        self._frozen[0].to(self.device)
        self._held_out = MeanMetric().to(self.device)

    @override
    def validation_step(self, batch: KeyedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._held_out.update(self.per_sample_loss(batch.batch, derive_keys(_VALIDATION_SEED, batch.indices)))

    @override
    def on_validation_epoch_end(self) -> None:
        """One mean over the samples of all tasks, whose loaders are several."""
        self.log("val_loss", self._held_out.compute())

    @override
    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.head.save(folder / HEAD_FILE)
            rank_zero_info(f"variance head ({self.head.target}): {folder / HEAD_FILE}")

    @override
    def configure_optimizers(self) -> Any:
        parameters = self.head.parameters()
        optimizer = self._optimizer(parameters) if self._optimizer else torch.optim.Adam(parameters, lr=1e-3)
        return optimizer if self._lr_scheduler is None else ([optimizer], [self._lr_scheduler(optimizer)])


def trained_model(checkpoint: str) -> DDPM:
    """The model of a checkpoint that ``cl-diffusion fit`` has written, on the CPU.

    Raises:
        ValueError: there is no such file, it holds more than tensors and plain values, or another model.
    """
    if not Path(checkpoint).is_file():
        raise ValueError(f"model={checkpoint!r} is not a file; give the checkpoint of a trained DDPM")
    plain_checkpoint(Path(checkpoint), "model")
    model = DDPM.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(model, DDPM):
        raise ValueError(f"model={checkpoint!r} holds a {type(model).__name__}; expected a DDPM")
    return model
