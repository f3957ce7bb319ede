"""Steps of training that are timed: the package's models and data, and the same step written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from cl_diffusion import DDPM, DistilledDDPM, ReplayDataModule, TaskDataModule
from cl_diffusion.data import ClassBalancedBuffer
from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.labelled import LabelledImages, StoredImages
from cl_diffusion.data.sources import SOURCES, Source
from cl_diffusion.diffusion import NoiseSchedule

CONFIGS = Path(__file__).parents[1] / "configs"
NETWORKS = {"paper": "unet_32x32", "16x16": "unet_16x16", "8x8": "unet_8x8"}
LR = 2e-4
Stage = Literal["first task", "later tasks"]


def unet(name: str) -> nn.Module:
    """The network of a file in ``configs/model``."""
    from diffusers import UNet2DModel

    config = yaml.safe_load((CONFIGS / "model" / f"{NETWORKS[name]}.yaml").read_text())
    torch.manual_seed(0)
    network: nn.Module = UNet2DModel(**config["model"]["init_args"]["network"]["init_args"])
    return network


def model(name: str, stage: Stage, one_forward: bool = False) -> DDPM:
    """As the package trains it; the two terms of the later tasks are added."""
    adam = lambda parameters: torch.optim.Adam(parameters, lr=LR)  # noqa: E731
    if stage == "first task":
        return DDPM(unet(name), optimizer=adam)
    return DistilledDDPM(unet(name), balance="sum", optimizer=adam, one_forward=one_forward)


def stream(size: int, steps: int, batch_size: int, stage: Stage, resident: bool = False) -> TaskDataModule:
    """Two tasks of noise images, ``steps`` full batches an epoch; the stage's task never ends."""

    def load(root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (2 * steps * batch_size, 1, size, size), generator=generator, dtype=torch.uint8)
        images = StoredImages(pixels, torch.arange(len(pixels)) % 2, 2, image_format)
        return [images, images]

    SOURCES["noise"] = Source(load, (1, size, size), 2)
    options: dict[str, Any] = {
        "dataset": "noise",
        "classes_per_task": 1,
        "epochs_per_task": [10**6, 1] if stage == "first task" else [1, 10**6],
        "batch_size": batch_size,
        "resident": resident,
    }
    if stage == "first task":
        return TaskDataModule(**options)
    return ReplayDataModule(ClassBalancedBuffer(images=steps * batch_size), 0.5, **options)


class BareLoop:
    """The same step, written out: a network, two tables, Adam, and batches that lie ready.

    Args:
        name: of the network.
        batches: images and labels; in later tasks two pairs.
        device: of all of it.
    """

    def __init__(self, name: str, batches: list[Any], device: torch.device) -> None:
        schedule = NoiseSchedule.linear()
        self.signal, self.noise = schedule.signal.float().to(device), schedule.noise.float().to(device)
        self.network = unet(name).to(device)
        self.teacher = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR)
        self.batches = batches

    def noised(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noisy images, their timesteps, and the noise."""
        t = torch.randint(len(self.signal), images.shape[:1], device=images.device)
        noise = torch.randn_like(images)
        return self.signal[t].view(-1, 1, 1, 1) * images + self.noise[t].view(-1, 1, 1, 1) * noise, t, noise

    def loss(self, current: Any, replay: Any | None) -> Tensor:
        """Of the current images, and of the teacher's answer on the replayed ones."""
        x_t, t, wanted = self.noised(current[0])
        loss = (self.network(x_t, t, class_labels=current[1], return_dict=False)[0] - wanted).square().mean()
        if replay is None:
            return loss
        x_t, t, _ = self.noised(replay[0])
        with torch.no_grad():
            wanted = self.teacher(x_t, t, class_labels=replay[1], return_dict=False)[0]
        return loss + (self.network(x_t, t, class_labels=replay[1], return_dict=False)[0] - wanted).square().mean()

    def run(self) -> None:
        """An epoch."""
        for current, replay in self.batches:
            self.optimizer.zero_grad()
            self.loss(current, replay).backward()
            self.optimizer.step()


def batches(data: TaskDataModule, stage: Stage, device: torch.device) -> list[Any]:
    """An epoch's, as pairs of the current and the replayed part."""
    task = 0 if stage == "first task" else 1
    found = iter(data.training_loader(task, task))
    pairs = [(batch, None) if task == 0 else tuple(batch[0]) for batch in found]
    move = lambda part: None if part is None else tuple(tensor.to(device) for tensor in part)  # noqa: E731
    return [(move(current), move(replay)) for current, replay in pairs]
