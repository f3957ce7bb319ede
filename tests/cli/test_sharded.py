"""`cl-diffusion fit` with the network sharded over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.tiny import configuration

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

SHARDED = {
    "devices": 2,
    "strategy": {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    },
}
EWC = {
    "class_path": "cl_diffusion.callbacks.EWC",
    "init_args": {
        "fisher": {"class_path": "cl_diffusion.fisher.MeanGradientFisher", "init_args": {"coefficient": "plain"}},
        "strength": 10.0,
    },
}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CL_DIFFUSION_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "cl_diffusion.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def sharded(folder: Path, **strategy: Any) -> Path:
    path = configuration(folder, strength=None, trainer=SHARDED)
    config = json.loads(path.read_text())
    config["trainer"]["callbacks"] += [EWC, {"class_path": "cl_diffusion.callbacks.Preemption"}]
    config["trainer"]["strategy"]["init_args"] |= strategy
    path.write_text(json.dumps(config))
    return path


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return found


@pytest.mark.slow
def test_a_sharded_run_is_resumed_to_the_same_end_and_read_by_one_process(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    assert run(tmp_path, "fit", "-c", str(path), "--run", "whole").returncode == 0
    (tmp_path / "resumed/checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "continual.csv", "metrics.csv", "checkpoints/after_task_1.ckpt"):
        (tmp_path / "resumed" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    first = "resumed/checkpoints/after_task_1.ckpt"
    resumed = run(tmp_path, "fit", "-c", str(path), "--run", "resumed", "--ckpt_path", first)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "resumed/continual.csv").read_text() == (tmp_path / "whole/continual.csv").read_text()
    one, other = (weights(tmp_path / folder / "checkpoints/after_task_2.ckpt") for folder in ("whole", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert "val_loss/task_2" in run(tmp_path, "validate", "--ckpt_path", f"{first}", *alone).stdout


@pytest.mark.slow
def test_what_shards_will_not_do_is_said_before_training(tmp_path: Path) -> None:
    path = sharded(tmp_path, save_distributed_checkpoint=True)
    assert "give the strategy save_distributed_checkpoint=False" in run(tmp_path, "fit", "-c", str(path)).stderr
    path = sharded(tmp_path, data_parallel_size=1, tensor_parallel_size=2)
    assert "data_parallel_size=2, tensor_parallel_size=1" in run(tmp_path, "fit", "-c", str(path)).stderr
    path = sharded(tmp_path)
    averaged = ["--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging"]
    assert "EMAWeightAveraging averages a copy" in run(tmp_path, "fit", "-c", str(path), *averaged).stderr
    distilled = ["-c", str(Path(__file__).parents[2] / "configs/replay/distillation.yaml")]
    assert "of a sharded one there is no copy" in run(tmp_path, "fit", "-c", str(path), *distilled).stderr
