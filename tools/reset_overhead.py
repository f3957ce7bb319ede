"""What Self-Normalized Resets take of a training step."""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor

from cl_diffusion import DDPM
from cl_diffusion.callbacks import SelfNormalizedResets
from cl_diffusion.modules import OnlineClassifier
from cl_diffusion.modules.perceptron import Perceptron

CONFIGS = Path(__file__).parents[1] / "configs"


def overhead() -> dict[str, Any]:
    """Seconds of a training step with Self-Normalized Resets over those without, of one fit that has both in turn."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ratios = {"MLP 100-100, 16": _measured(_mlp(), 16, 4), "U-Net 8x8, 64": _measured(_unet(), 64, 1)}
    return {
        "ratios": ratios,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _mlp() -> LightningModule:
    return OnlineClassifier(Perceptron(64, 10))


def _unet() -> LightningModule:
    from diffusers import UNet2DModel

    config = yaml.safe_load((CONFIGS / "model/unet_8x8.yaml").read_text())["model"]["init_args"]
    return DDPM(UNet2DModel(**config["network"]["init_args"]))


class _Blocks:
    """The batches again and again; takes the callback out of the Trainer, and puts it back, from block to block.

    Attributes:
        times: seconds of a step of each block after the first epoch, with the callback (True) and without.
        reset: units, in each of these blocks with the callback.
    """

    blocks = 102

    def __init__(self, trainer: Trainer, resets: SelfNormalizedResets, batch: int, steps: int) -> None:
        self.trainer, self.resets, self.steps = trainer, resets, steps
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.reset: list[int] = []
        digits = load_digits()
        order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))
        self.images = torch.tensor(digits.images / 16, dtype=torch.float32)[order].unsqueeze(1).split(batch)[:-1]
        self.labels = torch.tensor(digits.target)[order].split(batch)

    def __len__(self) -> int:
        return self.blocks * self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        for number in range(self.blocks):
            own = number % 4 in (0, 1)  # of the pairs 1-2, 3-4, .. each second one begins without
            epoch_ends = number == self.blocks - 1
            self.trainer.callbacks = [self.resets] if own or epoch_ends else []  # type: ignore[attr-defined]
            before, started = sum(self.resets.resets.values()), time.perf_counter()
            for _ in range(self.steps):
                yield self.images[step % len(self.images)], self.labels[step % len(self.images)]
                step += 1
            if self.trainer.current_epoch and number:
                self.times[own].append((time.perf_counter() - started) / self.steps)
                if own:
                    self.reset.append(sum(self.resets.resets.values()) - before)


def _measured(model: LightningModule, batch: int, steps: int) -> dict[str, float]:
    """On the digits, blocks of so many steps with the callback and without, one after the other in one fit.

    A machine that is shared changes its speed from one second to the next by more than is measured here; two blocks
    that follow one another have it nearly alike. Thresholds are taken anew after each epoch, from the second on they
    are of the units' own firing; steps in which units are reset count as others do.
    """
    resets = SelfNormalizedResets(initial_age=2000, tasks_per_update=1, epochs_per_task=1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=5, callbacks=[resets], enable_checkpointing=False, **quiet)
    blocks = _Blocks(trainer, resets, batch, steps)
    trainer.fit(model, blocks)
    ratios = [own / without for own, without in zip(blocks.times[True], blocks.times[False], strict=True)]
    without_resets = [ratio for ratio, units in zip(ratios, blocks.reset, strict=True) if not units]
    return {
        "without_ms": 1e3 * statistics.median(blocks.times[False]),
        "ratio": statistics.median(ratios),
        "ratio_error": _median_error(ratios),
        "ratio_where_no_unit_is_reset": statistics.median(without_resets),
        "its_error": _median_error(without_resets),
        "resets_per_step": sum(blocks.reset) / len(blocks.reset) / steps,
        "shortest_threshold": float(resets.detector.limits.min()),  # type: ignore[union-attr]
    }


def _median_error(values: Sequence[float]) -> float:
    """The standard error of the median, from the quartiles as of a normal law."""
    low, _, high = statistics.quantiles(values)
    return 1.2533 * (high - low) / 1.349 / len(values) ** 0.5
