"""Gradients of shards: the sums over all processes, whatever batches each of them has, and nothing else touched."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cl_diffusion.fisher import MeanGradientFisher, SketchedDiagonalFisher, estimate
from cl_diffusion.keys import KeyedBatch
from cl_diffusion.linalg.shards import whole, wholes

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

SHARES = [[[0, 1, 2], [3, 4], [5]], [[6, 7, 8, 9]]]  # the samples of each process, batch by batch
TOGETHER = [[0, 1, 2, 6, 7, 8, 9], [3, 4], [5]]
ESTIMATORS: dict[str, Any] = {
    "mean": lambda: MeanGradientFisher("plain"),
    "sketch": SketchedDiagonalFisher,
    "part of the mean": lambda: MeanGradientFisher("plain", exclude=["0.weight"]),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def batches(rows: list[list[int]]) -> list[KeyedBatch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    return [KeyedBatch((x[part], x[part].sum(1, keepdim=True)), torch.tensor(part)) for part in rows]


def work(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    model = network()
    fully_shard(model, mesh=mesh)
    loss(model, batches(SHARES[rank])[0].batch).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.float64))  # leaves parameters whole
    found = {}
    for name, make in ESTIMATORS.items():
        operator = estimate(make(), model, loss, batches(SHARES[rank]))
        found[name] = {"state": wholes(operator.tensors()), "record": dict(operator.provenance.record[0])}
        after = [p.grad for p in model.parameters()]
        assert all(torch.equal(whole(a), whole(b)) for a, b in zip(before, after, strict=True)), name
    refused = []
    for spoil in ("no samples", "no reduction", "another factor"):
        other = network()
        fully_shard(other, mesh=mesh)
        if spoil == "no reduction":
            other.set_requires_gradient_sync(False)  # type: ignore[operator]
        if spoil == "another factor":
            other.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        share = [] if spoil == "no samples" and rank == 1 else batches(SHARES[rank])
        try:
            estimate(SketchedDiagonalFisher(), other, loss, share)
        except ValueError as error:
            refused.append(str(error))
    torch.save({"found": found, "refused": refused}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (str(folder), port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_uneven_shares_sum_up_to_all_samples(name: str, noted: list[dict[str, Any]]) -> None:
    alone = estimate(ESTIMATORS[name](), network(), loss, batches(TOGETHER))
    for each in noted:
        torch.testing.assert_close(each["found"][name]["state"], alone.tensors(), rtol=1e-12, atol=1e-15)
        record, its = each["found"][name]["record"], alone.provenance.record[0]
        numbers = {key: value for key, value in its.items() if isinstance(value, float)}
        assert {key: record[key] for key in numbers} == pytest.approx(numbers, rel=1e-9, nan_ok=True)


def test_what_would_give_another_sum_is_refused_on_every_process(noted: list[dict[str, Any]]) -> None:
    for each in noted:
        samples, reduction, factor = each["refused"]
        assert "a process has no samples" in samples
        assert "sharded with set_requires_gradient_sync(False)" in reduction
        assert "sharded with set_gradient_divide_factor" in factor
