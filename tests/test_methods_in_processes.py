"""Every shipped method on one process and on several: the same importance, and the same weights on every process."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cl_diffusion.callbacks import ContinualMetrics, Regularizer
from cl_diffusion.cli import main
from cl_diffusion.keys import keyed_normal
from tests.tiny import configuration

ROOT = Path(__file__).parents[1]
METHODS = [path.relative_to(ROOT) for part in ("method", "replay") for path in (ROOT / "configs" / part).glob("*.yaml")]
METHODS = sorted(METHODS)
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
LEARNING_RATE = 1e-3
TOLERANCE = {"ewc_rank_k": 1e-3}  # to which its file has the iteration run; of the others, 1e-6


class Notes(Callback):
    """The first task stands still, so that its boundary is the same on any number of processes; the second learns.

    Writes what that boundary has left, as the second task begins, and what the fit leaves.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.noted: dict[str, Any] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = trainer.current_epoch > 0
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = LEARNING_RATE if started else 0.0
        if started:
            self.noted["boundary"] = noted(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.noted |= {"end": noted(trainer), "weights": dict(pl_module.state_dict())}
        torch.save(self.noted, self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


def noted(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """What the callbacks and the data hold: products of the operators, gradients of the penalties, replay, figures."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    weights = {name: p.detach().clone() for name, p in trainer.lightning_module.named_parameters()}
    away = {name: tensor + 0.1 * direction(name, tensor) for name, tensor in weights.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for regularizer in (each for each in callbacks if isinstance(each, Regularizer)):
        for number, term in enumerate(regularizer.terms):
            along = {name: direction(name, term.anchor[name]) for name in term.operator.names}
            found[f"operator {number}"] = dict(term.operator @ along)
        gradients = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        regularizer.penalty.add_gradient_(gradients, away, 1.0)
        found["penalty"] = gradients
    replay = getattr(trainer.datamodule, "replay", None)  # type: ignore[attr-defined]
    if replay is not None:
        found["replay"] = {name: t for name, t in replay.state_dict().items() if isinstance(t, Tensor)}
    (metrics,) = (each for each in callbacks if isinstance(each, ContinualMetrics))
    found["metrics"] = {
        f"{name} {entry}": torch.tensor(value, dtype=torch.float64)
        for name, matrix in metrics.matrices.items()
        for entry, value in matrix.entries.items()
    }
    return found


def direction(name: str, like: Tensor) -> Tensor:
    key = torch.tensor([sum(name.encode())])
    return keyed_normal(key, tuple(like.shape))[0].to(like)


def fit_all(rank: int, world: int, accelerator: str, folder: str, port: int) -> None:
    if world > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        os.environ |= {**address, "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["CL_DIFFUSION_CACHE"] = folder
    os.chdir(folder)
    torch.set_num_threads(1)
    for method in METHODS:
        devices = [
            f"--trainer.accelerator={accelerator}",
            f"--trainer.devices={world}",
            f"--trainer.strategy={'ddp' if world > 1 else 'auto'}",
        ]
        notes = ["--trainer.callbacks+", "tests.test_methods_in_processes.Notes"]
        notes += ["--trainer.callbacks.folder", str(Path(folder) / method.stem)]
        run = f"--run={folder}/run_{method.stem}_{world}_{accelerator}"
        main(["fit", "-c", f"{folder}/config.json", "-c", str(ROOT / method), *devices, *notes, *small(method), run])
    if dist.is_initialized():
        dist.destroy_process_group()


def small(method: Path) -> list[str]:
    if method.stem in ("distillation", "generative_replay"):
        return ["--data.replay.images_per_class=3", "--data.replay.batch_size=2"]
    if method.stem == "joint":
        return ["--data.epochs_per_task=2"]
    return []


def outcomes(world: int, accelerator: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each process noted of each method, all methods in one group of processes."""
    for method in METHODS:
        (folder / method.stem).mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(fit_all, (world, accelerator, str(folder), port), nprocs=world)
    return {
        method.stem: [
            torch.load(folder / method.stem / f"{world}_{rank}.pt", map_location="cpu", weights_only=True)
            for rank in range(world)
        ]
        for method in METHODS
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    path = configuration(folder, strength=None, epochs_per_task=1, batch_size=5, fraction=0.12)
    config = json.loads(path.read_text())
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:1]  # without checkpoints
    config["trainer"]["enable_checkpointing"] = False
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return outcomes(1, "cpu", folder)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize(("world", "accelerator"), [(2, "cpu"), (4, "cpu"), pytest.param(2, "gpu", marks=TWO_GPUS)])
def test_processes_agree_with_one_another_and_with_one(
    world: int, accelerator: str, folder: Path, alone: dict[str, list[dict[str, Any]]]
) -> None:
    rounding = 1e-6 if accelerator == "cpu" else 1e-2  # a GPU's products are TF32
    for method, (first, *others) in outcomes(world, accelerator, folder).items():
        for other in others:
            assert differing(first["weights"], other["weights"]) == [], method
            for moment in ("boundary", "end"):
                if moment in first:
                    assert set(first[moment]) == set(other[moment])
                    for part, tensors in first[moment].items():
                        assert differing(tensors, other[moment][part]) == [], (method, moment, part)
        if method == "joint":  # no task ends before the last, which learns
            continue
        allowed = max(rounding, TOLERANCE.get(method, 0.0))
        one = alone[method][0]["boundary"]
        assert set(one) == set(first["boundary"])
        for part, tensors in one.items():
            scale = sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5
            for name, tensor in tensors.items():
                distance = float((tensor.double() - first["boundary"][part][name].double()).norm())
                assert distance <= allowed * scale, (method, part, name, distance / scale)


@pytest.mark.slow
def test_there_is_something_to_compare(alone: dict[str, list[dict[str, Any]]]) -> None:
    for method, (noted,) in alone.items():
        held = "penalty" in noted["end"]
        assert held == method.startswith(("ewc", "iewc")), method
        if held:
            assert sum(float(t.abs().sum()) for t in noted["boundary"]["penalty"].values()) > 0, method
        if method in ("distillation", "generative_replay"):
            assert len(noted["end"]["replay"]) > 0, method
        assert noted["end"]["metrics"], method


def differing(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    return [name for name in {**mine, **theirs} if not torch.equal(mine[name], theirs[name])]
