"""One process and several: the same Fisher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cl_diffusion.fisher import DiagonalFisher, FisherEstimator, MeanGradientFisher, estimate
from cl_diffusion.keys import KeyedBatch, keyed_normal
from cl_diffusion.linalg import Operator
from tests.fisher.laws import problem, squared_error

ESTIMATORS: list[FisherEstimator] = [DiagonalFisher(), MeanGradientFisher()]
SAMPLES = 13


def perturbed(batch: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
    return batch[0], batch[1] + keyed_normal(keys, (2,)).double()


def estimates(rank: int, world: int) -> list[Operator]:
    model, (x, y) = problem("mlp", SAMPLES)
    share = torch.arange(rank, SAMPLES, world)
    batches = [KeyedBatch((x[rows], y[rows]), rows) for rows in share.split(4)]
    return [estimate(estimator, model, squared_error, batches, draw=perturbed) for estimator in ESTIMATORS]


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    operators = estimates(rank, world)
    torch.save([(op.diagonal(), dict(op.provenance.record[0])) for op in operators], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2])
def test_processes_agree_with_one_on_an_indivisible_data_set(world: int, tmp_path: Path) -> None:
    mp.spawn(_worker, args=(world, str(tmp_path)), nprocs=world)
    alone = estimates(0, 1)
    for rank in range(world):
        for expected, (diagonal, record) in zip(alone, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-12, atol=1e-15)
            assert record == pytest.approx(expected.provenance.record[0])
            assert record["samples"] == SAMPLES
