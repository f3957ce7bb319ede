"""The same operators on a GPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_diffusion.fisher import (
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
)
from cl_diffusion.keys import keyed_normal
from tests.fisher.laws import batches, problem

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ESTIMATORS: list[FisherEstimator] = [
    DiagonalFisher(),
    DiagonalFisher(offload=True),
    DiagonalFisher(residual="model", weighting=OutputNormalized(kappa=0.01)),
    SketchedDiagonalFisher(),
    MeanGradientFisher(),
    LeadingEigenpairsFisher(rank=2),
    KroneckerFisher(corrected=True),
]


def perturbed(batch: tuple[Tensor, ...], keys: Tensor) -> tuple[Tensor, ...]:
    return (*batch[:-1], batch[-1] + keyed_normal(keys, (2,)).to(batch[-1]))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
def test_a_gpu_gives_the_operator_of_the_cpu(estimator: FisherEstimator) -> None:
    def run(device: str) -> Any:
        model, data = problem("conv")
        loss = OutputLoss(SquaredError())
        return estimate(estimator, model.to(device), loss, batches(data, 5), draw=perturbed)

    on_cpu, on_gpu = run("cpu"), run("cuda")
    largest = max(float(value.max()) for value in on_cpu.diagonal().values())
    found = {name: value.cpu() for name, value in on_gpu.diagonal().items()}
    torch.testing.assert_close(found, on_cpu.diagonal(), rtol=1e-6, atol=1e-6 * largest)
