"""What a classifier has told right as it came, in one process and in two."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cl_diffusion.callbacks.batches import images_and_labels
from cl_diffusion.data import ChangingDataModule
from cl_diffusion.modules import OnlineClassifier
from cl_diffusion.modules.perceptron import Perceptron
from tests.callbacks.stranger import trainer


class First(nn.Module):
    """Says class 0 of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * self.none


def work(rank: int, folder: str, port: int) -> None:
    """Of 3 batches of 4 the first process is told all to be right, the second none."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    loader = DataLoader([(torch.zeros(4, 1, 2, 2), torch.full((4,), rank))] * 3, batch_size=None)
    model, root = OnlineClassifier(First()), Path(folder)
    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, "default_root_dir": root}
    run = trainer(max_epochs=1, **options)
    run.fit(model, loader)
    run.save_checkpoint(root / "mid.ckpt")
    again = trainer(max_epochs=2, **options)
    again.fit(model, loader, ckpt_path=root / "mid.ckpt")
    torch.save(model.task_figures(), root / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def test_all_processes_count_and_what_is_resumed_is_counted_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (str(tmp_path), port), nprocs=2)
    assert torch.load(tmp_path / "mid.ckpt", weights_only=True)["online"] == (12, 24)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == {"online_accuracy": 0.5}


def test_it_is_judged_on_held_out_samples_task_by_task() -> None:
    data = ChangingDataModule("labels", num_tasks=2, fraction=0.2)
    model = OnlineClassifier(Perceptron(64, 10, (8,)))
    (found,) = trainer().validate(model, datamodule=data, verbose=False)
    images, labels = images_and_labels(data.evaluation_dataloader(0), torch.device("cpu"))
    right = (model.network((images + 1) / 2).argmax(1) == labels).double().mean()
    assert found["val_accuracy"] == pytest.approx(float(right), rel=1e-6)
    first, second = trainer().test(model, datamodule=data, verbose=False)
    assert first["test_accuracy/dataloader_idx_0"] == pytest.approx(float(right), rel=1e-6)
    assert "test_accuracy/dataloader_idx_1" in second
