"""Operations of a training step, counted, and what a run of so many takes: that of 2509.23593 on MNIST."""

from __future__ import annotations

from typing import Any

import torch
from side_by_side import alternating
from steps_of_training import Stage, unet
from torch.utils.flop_counter import FlopCounterMode

from cl_diffusion import DDPM
from cl_diffusion.diffusion.samplers import DDIMSampler

PAPER = {"tasks": 5, "epochs": 200, "images": 12_000, "drawn": 5000 * (2 + 4 + 6 + 8), "sampler_steps": 50}
"""2509.23593 on MNIST; ``drawn`` before tasks 2 to 5, of each old class."""


def flops_of_an_image(name: str) -> tuple[float, float]:
    """Of a forward, and of a forward and backward, counted as two a multiplication and addition."""
    network = unet(name).to("meta")
    config: Any = network.config
    image = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as forward:
        output = network(image, label, class_labels=label, return_dict=False)[0]
    with FlopCounterMode(display=False) as backward:
        output.square().mean().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def flops_of_a_step(name: str, stage: Stage) -> float:
    """For each current image: in later tasks the replayed one's, and its teacher's, besides."""
    forward, both = flops_of_an_image(name)
    return both if stage == "first task" else 2 * both + forward


def peak(device: torch.device, rounds: int) -> float:
    """Operations a second of a large matrix product, in bfloat16 on a GPU and fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = 20 if device.type == "cuda" else 1
    found = alternating({"product": lambda: [a @ b for _ in range(times)]}, rounds, device)
    return times * 2 * size**3 / found["product"]["fastest"]


def paper_hours(name: str, rates: dict[Stage, float]) -> dict[str, float]:
    """The steps of the paper's MNIST run at these rates of current images a second, and the operations of them."""
    images = PAPER["epochs"] * PAPER["images"]
    counts: dict[Stage, int] = {"first task": images, "later tasks": (PAPER["tasks"] - 1) * images}
    return {
        "hours": sum(count / rates[stage] for stage, count in counts.items()) / 3600,
        "petaflop": sum(count * flops_of_a_step(name, stage) for stage, count in counts.items()) / 1e15,
    }


def drawing_hours(name: str, device: torch.device) -> float:
    """Of the replayed images of the paper's run: DDIM in fp32, as ``GenerativeReplay`` calls it."""
    size = unet(name).config.sample_size
    drawn = DDPM(unet(name), image_shape=(1, size, size), sampler=DDIMSampler(steps=PAPER["sampler_steps"])).to(device)
    labels = torch.arange(250, device=device) % 10
    with torch.no_grad():
        found = alternating({"draw": lambda: drawn.sample(labels)}, 1, device)
    return found["draw"]["seconds"] / len(labels) * PAPER["drawn"] / 3600
