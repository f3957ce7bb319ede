"""The denoising diffusion model as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from cl_diffusion.diffusion import Denoiser, DenoisingLoss, DrawnBatch, NoiseSchedule, Prediction, Reduction
from cl_diffusion.diffusion.bands import SNRBand
from cl_diffusion.diffusion.hybrid_loss import HybridLoss
from cl_diffusion.diffusion.image_batch import require_images, require_values
from cl_diffusion.diffusion.linear_surrogate import linear_output
from cl_diffusion.diffusion.network import null_class
from cl_diffusion.diffusion.prediction import x0_and_noise
from cl_diffusion.diffusion.samplers import DDIMSampler, Sampler
from cl_diffusion.fisher import OutputLoss, SquaredError
from cl_diffusion.keys import derive_keys, keyed_uniform
from cl_diffusion.modules.factory import factory
from cl_diffusion.modules.fresh_averages import FreshAverages
from cl_diffusion.modules.held_out_losses import HeldOutLosses
from cl_diffusion.modules.network_folder import self_contained
from cl_diffusion.modules.same_architecture import require_same_architecture
from cl_diffusion.modules.seeded_steps import SeededSteps
from cl_diffusion.modules.sharded_network import shard_network
from cl_diffusion.plain_hyperparameters import PlainHyperparameters
from cl_diffusion.stream import ReplayBatch


class DDPM(PlainHyperparameters, FreshAverages, SeededSteps, HeldOutLosses):
    """A denoising diffusion model (Ho et al. 2020, 2006.11239), class-conditional where its network is.

    Batches are ``(images, labels)`` or images alone, images in [-1, 1]. The training loss is the mean over samples of
    ``per_sample_loss``: the squared error of the prediction, mean over elements, at one uniform timestep a sample. A
    ``ReplayBatch`` is one batch of both its parts.

    Training steps are seeded (``SeededSteps``): a resumed fit draws what the uninterrupted one does. Under
    ``ModelParallelStrategy`` (FSDP2) the network is sharded. Averaged weights are of one task (``FreshAverages``).

    Args:
        network: a diffusers 2-D model, or any module called as ``network(x_t, t, y)``.
        schedule: alpha-bar; by default linear, 1000 steps.
        prediction: what the network predicts: ``epsilon``, ``x0`` or ``v``.
        optimizer: from parameters to an optimizer; the default is Adam at 2e-4.
        lr_scheduler: from an optimizer to a scheduler, stepped every epoch.
        sampler: draws the images of ``sample``; by default 50 DDIM steps.
        image_shape: ``(channels, height, width)``; taken from the data module where there is one.
        reduction: of the squared error over elements: ``"mean"``, or ``"half_sum"``; see ``DenoisingLoss``.
        label_dropout: share of the samples that are drawn without their label, for classifier-free guidance (Ho &
            Salimans 2022, 2207.12598); the network's last class then stands for none, and is one more than there are.
        learned_variance: the network returns twice the images' channels, the second half the variance of a reverse
            step, learned by the hybrid loss (Nichol & Dhariwal 2021, 2102.09672), for ``LearnedVarianceSampler``.

    Raises:
        ValueError: ``label_dropout`` is not in [0, 1), or the network does not say how many classes it embeds.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "epsilon",
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampler: Sampler | None = None,
        image_shape: tuple[int, int, int] | None = None,
        reduction: Reduction = "mean",
        label_dropout: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self_contained(self.hparams, network)
        none = null_class(network, label_dropout)
        self.denoiser = Denoiser(network, schedule or NoiseSchedule.linear(), prediction, none, learned_variance)
        self.label_dropout = label_dropout
        self.loss = HybridLoss(reduction=reduction) if learned_variance else DenoisingLoss(reduction=reduction)
        self.sampler = sampler or DDIMSampler(steps=50)
        self.image_shape = image_shape
        self._optimizer = factory(optimizer)
        self._lr_scheduler = factory(lr_scheduler)
        self._looked = False

    @property
    def class_conditional(self) -> bool:
        """Whether images of a given class can be asked for."""
        return self.denoiser.takes_labels

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """Whose timesteps are drawn."""
        return self.denoiser.schedule

    @property
    def loss_identity(self) -> Mapping[str, str]:
        """What the per-sample loss is, for the provenance of operators estimated from it."""
        dropout = {"label_dropout": str(self.label_dropout)} if self.label_dropout else {}
        return {**self.loss.describe(self.denoiser.schedule), "prediction": self.denoiser.prediction, **dropout}

    @property
    def output_loss(self) -> OutputLoss | None:
        """The per-sample loss, taken apart into output, target and squared error: for true Fishers and the like.

        None with a learned variance, whose loss is more than a squared error.
        """
        if self.denoiser.learned_variance:
            return None
        return OutputLoss(
            SquaredError(self.loss.reduction),
            output=lambda module, drawn: module.loss.output(module.denoiser, drawn),
            target=lambda module, drawn: module.loss.target(module.denoiser, drawn),
        )

    def draw(self, batch: Any, keys: Tensor | None = None, band: SNRBand | None = None) -> DrawnBatch:
        """The batch with its timesteps and noise; a function of ``keys`` (one 64-bit integer a sample) where given.

        Timesteps are of all the law that the loss has, or of one band.
        """
        if isinstance(batch, (tuple, list)) and len(batch) != 2:
            raise ValueError(f"batch holds {len(batch)} parts; expected (images, labels), or images alone")
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        if labels is not None and self.label_dropout:
            labels = self._some_dropped(labels, keys)
        return self.loss.draw(self.denoiser.schedule, images, labels, keys, band)

    def linear_output(self, drawn: DrawnBatch, second_moment: float) -> Tensor:
        """What the best multiple of ``x_t`` would predict; ``second_moment`` is ``E|x0|^2 / d`` (``linear_output``)."""
        return linear_output(self.denoiser, drawn, second_moment)

    def predicted_noise(self, drawn: DrawnBatch, output: Tensor) -> Tensor:
        """The noise that an output stands for, whatever the network predicts; of the shape of the images."""
        schedule = self.denoiser.schedule
        scales = schedule.scales(drawn.timesteps, like=drawn.images)
        x_t = schedule.add_noise(drawn.images, drawn.noise, drawn.timesteps)
        return x0_and_noise(self.denoiser.prediction, output, x_t, scales)[1]

    def per_sample_loss(self, batch: Any) -> Tensor:
        """``(B,)``: the squared error, reduced over elements, deterministic for a ``DrawnBatch``."""
        drawn = batch if isinstance(batch, DrawnBatch) else self.draw(batch)
        return self.loss(self.denoiser, drawn)

    def sample(
        self,
        labels: Tensor | None = None,
        *,
        num_images: int | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        progress: Any = None,
    ) -> Tensor:
        """Images ``(N, C, H, W)`` in [-1, 1] of the given classes, or ``num_images`` of an unconditional model.

        Raises:
            ValueError: the shape of an image is not known.
        """
        if self.image_shape is None:
            raise ValueError(
                "image_shape=None; give DDPM(image_shape=(channels, height, width)) or fit on a data module"
            )
        chosen = sampler or self.sampler
        return chosen.sample(
            self.denoiser,
            self.image_shape,
            labels if labels is None else labels.to(self.device),
            num_images=num_images,
            generator=generator,
            progress=progress,
        )

    @override
    def setup(self, stage: str) -> None:
        self.sampler.check(self.denoiser)  # before training
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "image_shape") or not hasattr(datamodule, "num_classes"):
            return
        shape = datamodule.image_shape
        if self.image_shape is not None and tuple(self.image_shape) != tuple(shape):
            raise ValueError(f"image_shape={tuple(self.image_shape)}, but the data module serves {tuple(shape)}")
        self.image_shape = tuple(shape)
        self.denoiser.check(self.image_shape, datamodule.num_classes)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._looked = False

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step; of the first batch of a fit, look at the values: each look waits for the device.

        Raises:
            ValueError: an image is not finite or far out of [-1, 1], or a label is out of range.
        """
        super().on_train_batch_start(batch, batch_idx)
        if self._looked:
            return
        self._looked = True
        for part in batch if isinstance(batch, ReplayBatch) else (batch,):
            images, labels = part if isinstance(part, (tuple, list)) and len(part) == 2 else (part, None)
            require_images(images, labels)
            require_values(images, labels, self.denoiser.num_classes if self.class_conditional else None)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.per_sample_loss(batch.together() if isinstance(batch, ReplayBatch) else batch)
        loss = losses.mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(losses))
        return loss

    @override
    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Images of the classes in ``batch``, with the classes; noise from the global seed and the batch's number."""
        position = batch_idx * self.trainer.world_size + self.global_rank
        seed = int(derive_keys(torch.initial_seed(), torch.tensor([position])))
        generator = torch.Generator().manual_seed(seed)
        if not self.class_conditional:
            return self.sample(num_images=len(batch), generator=generator), batch
        return self.sample(batch, generator=generator), batch

    @override
    def configure_model(self) -> None:
        """Shard the network, under ``ModelParallelStrategy``.

        Raises:
            ValueError: weights are to be averaged too, which takes a copy of the module.
        """
        callbacks: list[Any] = [] if self._trainer is None else self._trainer.callbacks  # type: ignore[attr-defined]
        averaging = [each for each in callbacks if isinstance(each, WeightAveraging)]
        if self.device_mesh is not None and averaging:
            raise ValueError(
                f"{type(averaging[0]).__name__} averages a copy of the module, and of sharded parameters there is no "
                "copy; leave it out, or use strategy='ddp'"
            )
        shard_network(self.denoiser.network, self.device_mesh)

    @override
    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self._optimizer(parameters) if self._optimizer else torch.optim.Adam(parameters, lr=2e-4)
        if self._lr_scheduler is None:
            return optimizer
        return [optimizer], [self._lr_scheduler(optimizer)]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["image_shape"] = self.image_shape

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.image_shape = checkpoint.get("image_shape") or self.image_shape
        if "state_dict" in checkpoint:  # into shards the strategy has loaded it by now, each weight in its place
            require_same_architecture(dict(self.state_dict()), checkpoint["state_dict"])

    def _some_dropped(self, labels: Tensor, keys: Tensor | None) -> Tensor:
        assert self.denoiser.null_class is not None
        uniform = (
            torch.rand(labels.shape, device=labels.device) if keys is None else keyed_uniform(keys).to(labels.device)
        )
        return labels.where(uniform >= self.label_dropout, self.denoiser.null_class)
