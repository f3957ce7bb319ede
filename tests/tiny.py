"""The smallest diffusion project: a U-Net of a few thousand parameters on a handful of digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from cl_diffusion import DDPM

NETWORK: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "num_class_embeds": 10,
}
DATA: dict[str, Any] = {
    "dataset": "digits",
    "tasks": [[0, 1], [2, 3]],
    "classes": [0, 1, 2, 3],
    "epochs_per_task": 2,
    "batch_size": 16,
    "fraction": 0.1,
    "images_per_class": 2,
}
METRICS = {"images_per_class": 2, "reference_steps": 3, "loss_draws": 1}


def unet(**changes: Any) -> nn.Module:
    from diffusers import UNet2DModel

    network: nn.Module = UNet2DModel(**{**NETWORK, **changes})
    return network


def ddpm(**changes: Any) -> DDPM:
    from cl_diffusion.diffusion.samplers import DDIMSampler

    return DDPM(unet(**changes), sampler=DDIMSampler(steps=2))


def configuration(
    folder: Path, *, strength: float | None = 10.0, trainer: dict[str, Any] | None = None, **data: Any
) -> Path:
    """A configuration file for `cl-diffusion fit`; JSON is YAML."""
    callbacks: list[dict[str, Any]] = [
        {"class_path": "cl_diffusion.callbacks.ContinualMetrics", "init_args": METRICS},
        {"class_path": "cl_diffusion.callbacks.TaskCheckpoint"},
    ]
    if strength is not None:
        fisher = {"class_path": "cl_diffusion.fisher.MeanGradientFisher"}
        callbacks.append(
            {"class_path": "cl_diffusion.callbacks.EWC", "init_args": {"fisher": fisher, "strength": strength}}
        )
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "cl_diffusion.DDPM",
            "init_args": {
                "network": {"class_path": "diffusers.UNet2DModel", "init_args": NETWORK},
                "sampler": {
                    "class_path": "cl_diffusion.diffusion.samplers.DDIMSampler",
                    "init_args": {"steps": 2},
                },
            },
        },
        "data": {"class_path": "cl_diffusion.TaskDataModule", "init_args": {**DATA, **data}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": callbacks,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **(trainer or {}),
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path
