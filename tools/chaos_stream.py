"""The stream that is killed: small, and everything on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = ("base.yaml", "data/digits.yaml", "model/unet_8x8.yaml", "replay/distillation.yaml", "hardware/cpu.yaml")
SMALL: dict[str, Any] = {
    "model": {
        "init_args": {
            "network": {"init_args": {"block_out_channels": [8, 16], "norm_num_groups": 4, "dropout": 0.1}},
        }
    },
    "data": {
        "init_args": {
            "tasks": [[0, 1], [2, 3], [4, 5]],
            "classes": [0, 1, 2, 3, 4, 5],
            "classes_per_task": None,
            "epochs_per_task": 3,
            "batch_size": 32,
            "replay": {
                "class_path": "cl_diffusion.data.GenerativeReplay",
                "init_args": {
                    "images_per_class": 40,
                    "sampler": {
                        "class_path": "cl_diffusion.diffusion.samplers.DDIMSampler",
                        "init_args": {"steps": 10},
                    },
                },
            },
        }
    },
    "trainer": {
        "check_val_every_n_epoch": 3,
        "deterministic": True,
        "enable_progress_bar": False,
        "accumulate_grad_batches": 2,
        "callbacks": [
            {
                "class_path": "cl_diffusion.callbacks.ContinualMetrics",
                "init_args": {
                    "bands": "cl_diffusion.diffusion.SNRBands.by_quantile",
                    "images_per_class": 20,
                    "loss_draws": 2,
                    "sampler": {
                        "class_path": "cl_diffusion.diffusion.samplers.DDIMSampler",
                        "init_args": {"steps": 10},
                    },
                },
            },
            {"class_path": "cl_diffusion.callbacks.TaskCheckpoint", "init_args": {"every_n_steps": 2}},
            {"class_path": "cl_diffusion.callbacks.Preemption"},
            {
                "class_path": "cl_diffusion.callbacks.EWC",
                "init_args": {
                    "fisher": {"class_path": "cl_diffusion.fisher.MeanGradientFisher"},
                    "strength": 1500.0,
                },
            },
            {"class_path": "cl_diffusion.callbacks.SynapticIntelligence", "init_args": {"strength": 1.0}},
            {
                "class_path": "cl_diffusion.callbacks.SelfNormalizedResets",
                "init_args": {"variant": "counting", "threshold": 0.5},
            },
            {"class_path": "cl_diffusion.callbacks.PlasticityMetrics"},
            {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        ],
    },
}


def words(run: Path, processes: int) -> list[str]:
    """Of the fit."""
    small = run.parent / "small.json"
    small.write_text(json.dumps(SMALL))
    files = [word for path in (*(CONFIGS / name for name in FILES), small) for word in ("-c", str(path))]
    several = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    return ["fit", *files, *several, f"--run={run}", "--ckpt_path=last"]
