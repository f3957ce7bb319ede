"""Parameters sharded over two processes (FSDP2): the importance, the penalty and the weights of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from cl_diffusion.callbacks import EWC, L2Init, Regularizer, TaskCheckpoint
from cl_diffusion.fisher import MeanGradientFisher, SketchedDiagonalFisher
from cl_diffusion.linalg.shards import whole, wholes
from tests.callbacks.stranger import trainer
from tests.callbacks.test_strategies import Shared

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "diagonal": lambda: EWC(SketchedDiagonalFisher(), 2.0, epochs_per_task=2),
    "rank one": lambda: EWC(MeanGradientFisher("plain"), 20.0, epochs_per_task=2),
    "rank one, separate": lambda: EWC(MeanGradientFisher("plain"), 20.0, epochs_per_task=2, memory="separate"),
    "rank one, online": lambda: EWC(MeanGradientFisher("plain"), 20.0, epochs_per_task=2, memory="online"),
    "proximal": lambda: EWC(SketchedDiagonalFisher(), 20.0, epochs_per_task=2, mode="proximal"),
    "proximal, rank one": lambda: EWC(MeanGradientFisher("plain"), 20.0, epochs_per_task=2, mode="proximal"),
    "l2 init": lambda: L2Init(0.2, epochs_per_task=2),
}


class Sharded(Shared):
    """The project of three tasks, its network sharded where there is a mesh of processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.optimizer = torch.optim.Adam  # Lightning restores no optimizer without a state into shards

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def on_train_end(self) -> None:
        (regularizer,) = (c for c in self.trainer.callbacks if isinstance(c, Regularizer))
        state = {
            "weights": [whole(p.detach()) for p in self.parameters()],
            "traces": [float(term.operator.trace()) for term in regularizer.terms],
            "terms": tensors(wholes([term.state() for term in regularizer.terms])),
            "held": sum(entries(t) for term in regularizer.terms for t in term.anchor.values()),
            "logged": {name: float(v) for name, v in self.trainer.callback_metrics.items() if "strength" not in name},
        }
        torch.save(state, self.folder / f"{self.global_rank}.pt")


def tensors(state: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def entries(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def fit(kind: str, folder: Path, devices: int, ckpt_path: Path | None = None, **options: Any) -> None:
    strategy = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False) if devices > 1 else "auto"
    folder.mkdir(exist_ok=True)
    trainer(
        REGULARIZERS[kind](),
        TaskCheckpoint(str(folder / "checkpoints"), epochs_per_task=2),
        max_epochs=6,
        use_distributed_sampler=False,
        devices=devices,
        strategy=strategy,
        enable_checkpointing=True,
        log_every_n_steps=1,
        **options,
    ).fit(Sharded(folder), ckpt_path=ckpt_path)


def work(rank: int, folder: str, port: int) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ |= {**address, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    for kind in REGULARIZERS:
        fit(kind, Path(folder) / f"{kind} on two", 2)
        checkpoint = Path(folder) / f"{kind} on two/checkpoints/after_task_1.ckpt"
        fit(kind, Path(folder) / f"{kind} resumed", 2, checkpoint)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (str(folder), port), nprocs=2)
    return folder


def noted(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / name / f"{rank}.pt", weights_only=True)
    return found


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_two_shards_are_one_process(kind: str, folder: Path) -> None:
    fit(kind, folder / f"{kind} alone", 1)
    alone, (first, second) = noted(folder, f"{kind} alone"), (noted(folder, f"{kind} on two", r) for r in (0, 1))
    assert first["held"] + second["held"] == alone["held"]
    assert 0 < second["held"] < first["held"] < alone["held"]
    assert first["traces"] == second["traces"] == pytest.approx(alone["traces"], rel=1e-4)
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["terms"], second["terms"], rtol=0, atol=0)
    assert first["logged"] == pytest.approx(alone["logged"], rel=1e-3, abs=1e-5)
    assert first["logged"] == second["logged"]


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_checkpoint_holds_all_shards_for_any_number_of_processes(kind: str, folder: Path) -> None:
    whole_, resumed = noted(folder, f"{kind} on two"), noted(folder, f"{kind} resumed")
    torch.testing.assert_close(whole_["weights"], resumed["weights"], rtol=0, atol=0)
    torch.testing.assert_close(whole_["terms"], resumed["terms"], rtol=0, atol=0)
    fit(kind, folder / f"{kind} on one after all", 1, folder / f"{kind} on two/checkpoints/after_task_1.ckpt")
    torch.testing.assert_close(
        noted(folder, f"{kind} on one after all")["weights"], whole_["weights"], rtol=1e-4, atol=1e-5
    )
