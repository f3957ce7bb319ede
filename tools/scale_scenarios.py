"""Streams that are too large to be run here, as data, and what is assumed of the machines that would run them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scale_networks import Counted, counted


@dataclass(frozen=True)
class Assumptions:
    """What the bill takes for granted; every one is an option of the command.

    The metadata of a field says what it is and where it is from.
    """

    gpu_gb: float = field(default=80.0, metadata={"says": "memory of a GPU in 1e9 bytes"})
    bf16_tflops: float = field(default=989.0, metadata={"says": "peak of bf16, dense: NVIDIA's figure of an H100 SXM"})
    fp32_tflops: float = field(
        default=495.0,
        metadata={
            "says": "peak of TF32, dense, of the same, convolutions' default: Fisher, replay, metrics; 67 without"
        },
    )
    fp64_tflops: float = field(default=34.0, metadata={"says": "peak of fp64 without tensor cores, for eigenbases"})
    utilisation: float = field(default=0.35, metadata={"says": "share of a peak that is reached; a guess"})
    ring_gb: float = field(default=300.0, metadata={"says": "GB/s of a ring, of 450 by NVLink or 400 of a card a GPU"})
    memory_tb: float = field(default=3.35, metadata={"says": "TB/s that a GPU reads, for what a penalty must read"})
    epochs: int = field(default=200, metadata={"says": "of each task, as in 2509.23593"})
    batch: int = field(default=32, metadata={"says": "images of a step on each GPU, replayed ones left out"})
    replay_share: float = field(
        default=0.5, metadata={"says": "of what a step sees that is replayed, from the second task on"}
    )
    replay_per_class: int = field(default=1000, metadata={"says": "images drawn of each old class"})
    sampler_steps: int = field(default=50, metadata={"says": "evaluations an image, of replay and metrics"})
    metrics_per_class: int = field(default=50, metadata={"says": "images drawn of each class at each boundary"})
    loss_draws: int = field(default=10, metadata={"says": "draws for each held-out image at each boundary"})
    rank: int = field(default=10, metadata={"says": "of leading eigenpairs"})
    lanczos_steps: int = field(default=100, metadata={"says": "passes that they take: the most, by default"})

    @property
    def ring_bytes(self) -> float:
        """Bytes a second."""
        return self.ring_gb * 1e9


ADM: dict[str, Any] = {
    "layers_per_block": 3,
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "norm_num_groups": 32,
    "num_class_embeds": 1000,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
"""The U-Net of Dhariwal & Nichol 2021 (2105.05233) for 64x64, in diffusers' blocks but for its widths."""


@dataclass(frozen=True)
class Scenario:
    """A stream, a network and a number of GPUs.

    Args:
        name: with which it is told.
        gpus: on which DDP trains.
        network: arguments of ``UNet2DModel``.
        image: side and channels.
        tasks: of equally many classes.
        classes: in all.
        training: images in all.
        held_out: images in all.
    """

    name: str
    gpus: int
    network: dict[str, Any]
    image: tuple[int, int] = (64, 3)
    tasks: int = 20
    classes: int = 1000
    training: int = 1_281_167
    held_out: int = 50_000

    def counted(self) -> Counted:
        """Sizes and FLOP, from shapes."""
        return counted(*self.image, self.network)


def _adm(width: int, head: int) -> dict[str, Any]:
    return {**ADM, "block_out_channels": [width, 2 * width, 3 * width, 4 * width], "attention_head_dim": head}


SCENARIOS = [
    Scenario("ImageNet-1k, 64x64, in 20 tasks; ADM's U-Net", 8, _adm(192, 64)),
    Scenario("a U-Net of 1e9 parameters, the same stream, 8 GPUs", 8, _adm(352, 32)),
    Scenario("a U-Net of 1e9 parameters, the same stream, 64 GPUs", 64, _adm(352, 32)),
]
"""The second is ADM's, 352 channels wide in place of 192."""
