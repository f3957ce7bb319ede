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
    LossGradients,
    MeanGradientFisher,
    OneByOne,
    OutputSensitivity,
    SketchedDiagonalFisher,
    check,
    estimate,
    try_out,
)
from cl_diffusion.fisher.sample_loss import Inputs
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
    OutputSensitivity(),
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


@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_no_more_single_gradients_are_held_than_a_chunk_and_no_more_graphs_than_one(chunk_size: int | None) -> None:
    model, (x, y) = problem("mlp")
    seen: list[int] = []

    def watched(model: nn.Module, batch: Any) -> Tensor:
        seen.append(len(batch[0]))
        assert batch[2].shape == (2,)  # shared by the samples
        return mean_loss(model, batch[:2])

    gradients = LossGradients(model, OneByOne(watched), chunk_size)
    sizes = [len(chunk["0.weight"]) for chunk in gradients.per_sample((x, y, torch.zeros(2)))]
    assert sizes == {1: [1] * 13, 4: [4, 4, 4, 1], None: [13]}[chunk_size]
    assert seen == [1] * 13
    gradients.products((x, y, torch.zeros(2)), dict(model.named_parameters()))
    assert len(seen) == 2 * 13  # one forward and backward a sample, no more


def test_the_sums_are_those_of_the_single_gradients_also_of_a_loss_that_draws() -> None:
    model, (x, y) = problem("mlp")

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch.batch
        return mean_loss(model, (x + torch.randn_like(x), y))

    gradients = LossGradients(model, OneByOne(noisy), chunk_size=3)
    inputs = Inputs((x, y), reseed=7)
    g = torch.cat([torch.cat([t.flatten(1) for t in chunk.values()], 1) for chunk in gradients.per_sample(inputs)])
    w, v = torch.randn(13, dtype=torch.float64), torch.randn(g.shape[1], dtype=torch.float64)
    direction = parameters.unflatten(v, gradients.parameters)
    for found, expected in (
        (gradients.summed(inputs), g.sum(0)),
        (gradients.summed(inputs, w), w @ g),
        (gradients.summed_squares(inputs), g.square().sum(0)),
        (gradients.summed_absolute(inputs), g.abs().sum(0)),
        (gradients.products(inputs, direction), g.T @ (g @ v)),
    ):
        torch.testing.assert_close(parameters.flatten(found), expected)
    torch.testing.assert_close(gradients.projections(inputs, direction), g @ v)


def test_many_half_precision_gradients_are_summed_in_single_precision() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    gradients = LossGradients(model, OneByOne(lambda model, x: model(x).mean()))
    ones = torch.ones(1000, 1, dtype=torch.bfloat16)
    assert float(gradients.summed(ones)["weight"]) == 1000  # in half precision it stops at 256
    assert float(gradients.products(ones, {"weight": torch.ones(1, 1, dtype=torch.bfloat16)})["weight"]) == 1000


def test_a_loss_that_draws_for_itself_draws_the_same_in_every_pass() -> None:
    model, x = Unbatchable(), torch.rand(6, 2, dtype=torch.float64)

    def noisy(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch + 0.1 * torch.rand_like(batch)).sum()

    generator = torch.Generator().manual_seed(0)

    def changing(model: nn.Module, batch: Tensor) -> Tensor:
        noise = torch.rand(batch.shape, dtype=batch.dtype, generator=generator)
        return model(batch + 0.1 * noise).sum()

    first, second = (estimate(LeadingEigenpairsFisher(rank=2), model, OneByOne(noisy), [x]) for _ in range(2))
    assert torch.equal(first.trace(), second.trace())
    quiet = estimate(LeadingEigenpairsFisher(rank=2), model, OneByOne(lambda model, x: model(x).sum()), [x])
    assert not torch.allclose(first.trace(), quiet.trace())
    with pytest.raises(ValueError, match="changes from pass to pass"):
        estimate(LeadingEigenpairsFisher(rank=2), model, OneByOne(changing), [x])


@pytest.mark.parametrize("result", [None, torch.zeros(2), {"loss": torch.zeros(())}])
def test_what_is_no_number_is_refused(result: Any) -> None:
    model, batch = problem("mlp")
    with pytest.raises(ValueError, match="of a batch of one is .*; expected a single number"):
        estimate(DiagonalFisher(), model, OneByOne(lambda *_: result), [batch])


def test_layers_cannot_be_read_one_by_one() -> None:
    model, batch = problem("mlp")
    for attempt in (estimate, try_out):
        with pytest.raises(ValueError, match="KroneckerFisher reads .* use DiagonalFisher"):
            attempt(KroneckerFisher(), model, OneByOne(refused), iter([]))  # before any pass


def refused(*_: Any) -> Tensor:
    raise AssertionError("a pass was made")
