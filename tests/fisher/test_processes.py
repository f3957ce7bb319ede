"""One process and several: the same Fisher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# Its default arguments hold the process group that there is when it is first imported, and torch.func imports it: were
# that after init_process_group, the group's threads would outlive its destruction and now and then abort the exit.
import torch.distributed.nn.functional  # noqa: F401
import torch.multiprocessing as mp
from torch import Tensor

from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    OutputSensitivity,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
    try_out,
)
from cl_diffusion.fisher.inner_products import combination, inner_products
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.probe import Probe
from cl_diffusion.fisher.residual import Empirical
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.keys import KeyedBatch, keyed_normal
from cl_diffusion.linalg import Operator
from tests.fisher.laws import problem

SAMPLES = 13
LOSS = OutputLoss(SquaredError())


NAMES = ("negative", "positive")


class BySign:
    def __call__(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[1][:, 0] > 0).long()


ESTIMATORS: list[FisherEstimator] = [
    DiagonalFisher(),
    DiagonalFisher(residual="model"),
    DiagonalFisher(weighting=OutputNormalized(kappa=0.01)),
    DiagonalFisher(weighting=OutputNormalized(tau=0.1, importance="residual_diversity")),
    MeanGradientFisher(),
    MeanGradientFisher(coefficient_fraction=0.5),
    LeadingEigenpairsFisher(rank=3),
    KroneckerFisher(),
    KroneckerFisher(corrected=True),
    BandedFisher(DiagonalFisher(), BySign(), names=NAMES),
    BandedFisher(MeanGradientFisher(weighting=OutputNormalized(kappa=0.1)), BySign(), names=NAMES),
    OutputSensitivity(),
]


def perturbed(batch: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
    return batch[0], batch[1] + keyed_normal(keys, (2,)).double()


def estimates(rank: int, world: int, samples: int) -> list[Operator]:
    model, (x, y) = problem("mlp", samples)
    share = torch.arange(rank, samples, world)
    batches = [KeyedBatch((x[rows], y[rows]), rows) for rows in share.split(4) if len(rows)]
    for estimator in ESTIMATORS:
        try_out(estimator, model, LOSS, batches, draw=perturbed)
    return [estimate(estimator, model, LOSS, batches, draw=perturbed) for estimator in ESTIMATORS]


def _worker(rank: int, world: int, samples: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    operators = estimates(rank, world, samples)
    torch.save([(op.diagonal(), op.trace(), dict(op.provenance.record[0])) for op in operators], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "samples"), [(2, SAMPLES), *(pytest.param(4, few, marks=pytest.mark.slow) for few in (SAMPLES, 3))]
)
def test_processes_agree_with_one_on_an_indivisible_data_set(world: int, samples: int, tmp_path: Path) -> None:
    """13 samples over 2 and 4 processes, and 3 over 4, one of which has none."""
    mp.spawn(_worker, args=(world, samples, str(tmp_path)), nprocs=world)
    alone = estimates(0, 1, samples)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        for estimator, expected, (diagonal, trace, record) in zip(ESTIMATORS, alone, found, strict=True):
            lanczos = isinstance(estimator, LeadingEigenpairsFisher)
            largest = max(float(value.max()) for value in expected.diagonal().values())
            close = {"rtol": 1e-6, "atol": 1e-6 * largest} if lanczos else {"rtol": 1e-9, "atol": 1e-12 * largest}
            torch.testing.assert_close(diagonal, expected.diagonal(), **close)
            torch.testing.assert_close(trace, expected.trace(), rtol=close["rtol"], atol=0)
            assert record["samples"] == samples
            if not lanczos:
                same = {k: v for k, v in expected.provenance.record[0].items() if isinstance(v, float)}
                assert {k: record[k] for k in same} == pytest.approx(same, rel=1e-9, nan_ok=True)


def _sketch_worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/sketch", rank=rank, world_size=world)
    model, (x, y) = problem("mlp", SAMPLES)
    rows = torch.arange(rank, SAMPLES, world)
    batches = [KeyedBatch((x[row : row + 1], y[row : row + 1]), rows[rows == row]) for row in rows.tolist()]
    operator = estimate(SketchedDiagonalFisher(), model, LOSS, batches)
    torch.save(operator.diagonal(), f"{folder}/sketch{rank}.pt")
    dist.destroy_process_group()


def test_processes_agree_on_a_sketch_that_puts_each_sample_in_a_sum_of_its_own(tmp_path: Path) -> None:
    mp.spawn(_sketch_worker, args=(2, str(tmp_path)), nprocs=2)
    model, data = problem("mlp", SAMPLES)
    exact = estimate(DiagonalFisher(), model, LOSS, [data])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"sketch{rank}.pt"), exact.diagonal())


def audited(rank: int, world: int) -> dict[str, Tensor]:
    """Inner products, a direction of known coordinates, and what a step along it does."""
    model, (x, y) = problem("mlp", SAMPLES)
    share = torch.arange(rank, SAMPLES, world)
    batches = [KeyedBatch((x[rows], y[rows]), rows) for rows in share.split(4)]
    populations = [Population(model, LOSS, batches, draw=perturbed, seed=seed) for seed in (0, 1)]
    sources = [Samples(population, Empirical()) for population in populations]
    found = inner_products(sources, squares=[1])
    direction = combination(sources, found, torch.linspace(-1, 1, 2 * SAMPLES, dtype=torch.float64))
    probe = Probe(populations[0], draw=1)
    slopes, changes = probe.slopes(direction), probe.changes(direction)
    assert slopes.curvature is not None
    assert changes.along_residual is not None
    return {
        "products": found.products,
        "squares": found.squares[1],
        "indices": torch.cat(found.indices),
        "losses": probe.losses,
        "slopes": slopes.loss,
        "curvature": slopes.curvature,
        "changes": changes.loss,
        "along": changes.along_residual,
        **direction,
    }


def _audit_worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/audit", rank=rank, world_size=world)
    torch.save(audited(rank, world), f"{folder}/audit{rank}.pt")
    dist.destroy_process_group()


def test_processes_agree_on_what_an_audit_is_made_of(tmp_path: Path) -> None:
    mp.spawn(_audit_worker, args=(2, str(tmp_path)), nprocs=2)
    alone = audited(0, 1)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"audit{rank}.pt"), alone)
