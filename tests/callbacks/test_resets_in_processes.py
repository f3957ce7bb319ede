"""Two processes reset the same units to the same weights, by what both of them have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cl_diffusion.callbacks import ContinualBackprop, ReDo, SelfNormalizedResets
from cl_diffusion.callbacks.plasticity.unit_resets import UnitResets
from tests.callbacks.stranger import trainer
from tests.callbacks.test_unit_resets import Rectified

BUILD: dict[str, Any] = {
    "released": lambda: SelfNormalizedResets(initial_age=48),
    "counting": lambda: SelfNormalizedResets(variant="counting", threshold=0.9),
    "ReDo": lambda: ReDo(every_n_steps=3),
    "Continual Backprop": lambda: ContinualBackprop(rate=0.05, maturity=1),
}


class Split(Rectified):
    """Unit 2 of the first layer fires on the samples of the second process alone; unit 1 never does."""

    def __init__(self) -> None:
        super().__init__(dead=(1,), optimizer=torch.optim.SGD, lr=0.0)
        with torch.no_grad():
            self.net[0].weight[2] = torch.tensor([1.0, 0.0, 0.0])
            self.net[0].bias[:] = 5.0
            self.net[0].bias[[1, 2]] = torch.tensor([-100.0, 0.0])
            self.net[2].bias[:] = 5.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    x = [torch.randn(8, 3, generator=generator) for _ in range(6)]
    for each in x:
        each[:, 0] = each[:, 0].abs() * (1 if rank == 1 else -1)
    return [(each, each[:, :1]) for each in x]


def work(rank: int, folder: str, kind: str, port: int) -> None:
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    resets: UnitResets = BUILD[kind]()
    model = Split()
    torch.manual_seed(100 + rank)  # what is drawn is not the processes' own
    loader = torch.utils.data.DataLoader(batches(rank), batch_size=None)
    trainer(resets, max_epochs=1, devices=2, strategy="ddp", use_distributed_sampler=False).fit(model, loader)
    torch.save({"weights": model.state_dict(), "resets": resets.resets}, Path(folder) / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILD)
def test_processes_agree(kind: str, tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path), kind, 29500 + hash(kind) % 400), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["resets"] == other["resets"]
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    assert sum(one["resets"].values()) > 0
    if kind in ("released", "ReDo"):
        assert one["resets"]["net.0"] >= 1
        assert one["resets"]["net.2"] == 0
        start = Split()
        assert not torch.equal(one["weights"]["net.0.weight"][1], start.net[0].weight[1])
        assert torch.equal(one["weights"]["net.0.weight"][2], start.net[0].weight[2])  # the other process saw it fire
