"""What a stream of tasks takes at its boundaries, counted on one that is trained: the smallest U-Net on digits."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from scale_growth import Growth
from scale_networks import tensor_bytes, unet
from typing_extensions import override

from cl_diffusion import DistilledDDPM, ReplayDataModule
from cl_diffusion.callbacks import EWC, ContinualMetrics, TaskCheckpoint
from cl_diffusion.data import GenerativeReplay
from cl_diffusion.data.replay_source import OldTasks, Pool
from cl_diffusion.diffusion.samplers import DDIMSampler
from cl_diffusion.fisher import DiagonalFisher

IMAGES_PER_CLASS, LOSS_DRAWS, STEPS = 4, 2, 3


class Evaluations:
    """Images that have gone through a network, forward."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, module: torch.nn.Module) -> None:
        """Count from here on."""
        module.register_forward_hook(self._add)

    def _add(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.count += len(inputs[0])


class CountedMetrics(ContinualMetrics):
    """Evaluations of the network at each boundary."""

    def __init__(self, evaluations: Evaluations) -> None:
        super().__init__(images_per_class=IMAGES_PER_CLASS, loss_draws=LOSS_DRAWS, reference_steps=3)
        self.evaluations = evaluations
        self.found: list[tuple[float, float]] = []

    @override
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        before = self.evaluations.count
        super().on_task_end(trainer, pl_module, task)
        self.found.append((task + 1.0, float(self.evaluations.count - before)))


class CountedReplay(GenerativeReplay):
    """Evaluations of the network for each pool, and the pool's bytes."""

    def __init__(self, evaluations: Evaluations) -> None:
        super().__init__(IMAGES_PER_CLASS)
        self.evaluations = evaluations
        self.found: list[tuple[float, float]] = []
        self.kept: list[tuple[float, float]] = []

    @override
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        before = self.evaluations.count
        pools = super().pools(old, trainer)
        if drawn := self.evaluations.count - before:
            self.found.append((float(old.task), float(drawn)))
            self.kept.append((float(old.task), float(tensor_bytes(self.state_dict()["images"]))))
        return pools


def boundaries() -> list[Growth]:
    """Network evaluations of metrics and replay at each boundary, and bytes of pool and checkpoint, by tasks so far."""
    torch.manual_seed(0)
    evaluations = Evaluations()
    metrics, replay = CountedMetrics(evaluations), CountedReplay(evaluations)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        checkpoints = TaskCheckpoint(folder)
        model = DistilledDDPM(unet(8, (8, 16)), sampler=DDIMSampler(STEPS))
        evaluations.watch(model.denoiser.network)
        data = ReplayDataModule(replay, 0.5, dataset="digits", classes_per_task=2, fraction=0.2, batch_size=32)
        trainer = Trainer(
            max_epochs=5,
            reload_dataloaders_every_n_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=[EWC(DiagonalFisher(), strength=1.0), metrics, checkpoints],
        )
        trainer.fit(model, datamodule=data)
        files = [Path(folder) / f"after_task_{task}.ckpt" for task in range(1, 6)]
        written = [(float(task), float(file.stat().st_size)) for task, file in enumerate(files, 1) if file.exists()]
    return [
        Growth("metrics at a boundary", "evaluations", "tasks", tuple(metrics.found)),
        Growth("drawing of a replay pool", "evaluations", "old tasks", tuple(replay.found)),
        Growth("replay pool", "bytes kept", "old tasks", tuple(replay.kept)),
        Growth("checkpoint, diagonal + teacher + pool", "bytes on disk", "tasks", tuple(written)),
    ]
