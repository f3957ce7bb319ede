"""A project that has only the loss of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    GivenWeights,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OneByOne,
    SketchedDiagonalFisher,
    check,
    estimate,
)
from cl_diffusion.linalg import parameters
from tests.fisher.laws import problem, squared_error


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return squared_error(model, batch).mean()


ESTIMATORS: list[FisherEstimator] = [
    DiagonalFisher(),
    DiagonalFisher(weighting=GivenWeights(lambda batch: 1 + batch[-1][:, 0].abs())),
    SketchedDiagonalFisher(),
    MeanGradientFisher(),
    LeadingEigenpairsFisher(rank=2),
    BandedFisher(DiagonalFisher(), lambda batch: (batch[-1][:, 0] > 0).long(), names=["negative", "positive"]),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.name)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_it_is_the_estimate_of_the_loss_of_each_sample(
    estimator: FisherEstimator, kind: str, chunk_size: int | None
) -> None:
    model, batch = problem(kind)
    batches = [tuple(part[rows] for part in batch) for rows in torch.arange(13).split(5)]
    want = estimate(estimator, model, squared_error, batches)
    got = estimate(estimator, model, OneByOne(mean_loss), batches, chunk_size=chunk_size)
    difference = parameters.subtract(got.diagonal(), want.diagonal())
    assert float(parameters.norm(difference) / parameters.norm(want.diagonal())) < 1e-6
    vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    torch.testing.assert_close((got @ vector), (want @ vector), rtol=1e-5, atol=1e-9)


class Unbatchable(nn.Module):
    """A branch on a value, which no batched derivative survives, and a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).sum(1) if x.sum().item() > 0 else -(self.scale * x).sum(1)


def test_a_model_that_no_batched_derivative_survives() -> None:
    model, x = Unbatchable(), torch.randn(6, 2, dtype=torch.float64)
    operator = estimate(DiagonalFisher(), model, OneByOne(lambda model, batch: model(batch).sum()), [x])
    torch.testing.assert_close(operator.diagonal()["scale"], x.square().mean(0))
    assert torch.equal(operator.diagonal()["unused"], torch.zeros(3, dtype=torch.float64))
    found = check(operator, model, OneByOne(lambda model, batch: model(batch).sum()), [x])
    assert found.diagonal_error < 1e-12


def test_a_loss_that_draws_for_itself_draws_the_same_in_every_pass() -> None:
    model, x = Unbatchable(), torch.rand(6, 2, dtype=torch.float64)

    def noisy(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch + 0.1 * torch.rand_like(batch)).sum()

    estimate(LeadingEigenpairsFisher(rank=2), model, OneByOne(noisy), [x])  # refuses draws that change


@pytest.mark.parametrize("result", [None, torch.zeros(2), {"loss": torch.zeros(())}])
def test_what_is_no_number_is_refused(result: Any) -> None:
    model, batch = problem("mlp")
    with pytest.raises(ValueError, match="of a batch of one is .*; expected a single number"):
        estimate(DiagonalFisher(), model, OneByOne(lambda *_: result), [batch])


def test_layers_cannot_be_read_one_by_one() -> None:
    model, batch = problem("mlp")
    with pytest.raises(ValueError, match="KroneckerFisher reads .* use DiagonalFisher"):
        estimate(KroneckerFisher(), model, OneByOne(mean_loss), [batch])
