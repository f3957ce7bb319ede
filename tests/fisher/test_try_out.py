"""What does not fit is refused on a first batch."""

from __future__ import annotations

from collections.abc import Iterator
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
    OutputLoss,
    OutputNormalized,
    OutputSensitivity,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
    try_out,
)
from tests.fisher.laws import problem, squared_error

LOSS = OutputLoss(SquaredError())
FITTING: list[FisherEstimator] = [
    DiagonalFisher(),
    DiagonalFisher(residual="model"),
    DiagonalFisher(weighting=OutputNormalized(kappa=0.01)),
    DiagonalFisher(weighting=OutputNormalized(tau=0.1, importance="residual_diversity")),
    DiagonalFisher(weighting=GivenWeights(lambda batch: torch.zeros(len(batch[0])).double())),  # others may be in
    SketchedDiagonalFisher(),
    MeanGradientFisher(),
    MeanGradientFisher(coefficient="plain"),
    LeadingEigenpairsFisher(rank=10),
    KroneckerFisher(),
    KroneckerFisher(corrected=True),
    OutputSensitivity(),
    BandedFisher(DiagonalFisher(), lambda batch: torch.zeros(len(batch[0])).long(), names=["all", "nothing here"]),
]


@pytest.mark.parametrize("estimator", FITTING, ids=lambda estimator: estimator.name)
def test_two_samples_are_enough_and_nothing_is_disturbed(estimator: FisherEstimator) -> None:
    model, batch = problem("normed", samples=2)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    try_out(estimator, model, LOSS, [batch])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_residuals_that_are_all_zero_in_a_few_samples_are_no_reason() -> None:
    """Others may have some: a trial lets them pass, an estimate over nothing else does not."""
    model, (x, _) = problem("mlp")
    estimator, exact = DiagonalFisher(weighting=OutputNormalized(kappa=0.1)), [(x, model(x).detach())]
    try_out(estimator, model, LOSS, exact)
    with pytest.raises(ValueError, match="every residual is exactly zero"):
        estimate(estimator, model, LOSS, exact)


def test_the_first_batch_is_all_that_is_looked_at() -> None:
    model, batch = problem("mlp")
    taken = 0

    def counted() -> Iterator[tuple[Tensor, ...]]:
        nonlocal taken
        for _ in range(5):
            taken += 1
            yield batch

    try_out(DiagonalFisher(weighting=OutputNormalized(kappa=0.1)), model, LOSS, counted())
    assert taken == 1


def scalar(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return squared_error(model, batch).mean()


def branching(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    losses = model.last(model(batch[0]) - batch[1]).square().mean(1)
    return losses if losses.sum().item() > 0 else -losses


@pytest.mark.parametrize("attempt", [estimate, try_out])
def test_a_batched_derivative_is_asked_for_where_it_is_needed_alone(attempt: Any) -> None:
    """By a free parameter; the layers' own go without."""
    model, batch = problem("mlp")
    model.last = nn.Softmax(1)
    model.register_parameter("free", nn.Parameter(torch.ones(1, dtype=torch.float64)))

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return branching(model, batch) * model.free

    for needs in (DiagonalFisher(), MeanGradientFisher(), LeadingEigenpairsFisher(), KroneckerFisher()):
        with pytest.raises(RuntimeError, match="per-sample gradients of .*vmap.*OneByOne"):
            attempt(needs, model, loss, [batch])
    for spared in (SketchedDiagonalFisher(), MeanGradientFisher("plain"), DiagonalFisher(exclude=["free"])):
        attempt(spared, model, loss, [batch])


@pytest.mark.parametrize("estimator", [LeadingEigenpairsFisher(), KroneckerFisher(corrected=True)])
def test_a_loss_that_changes_from_pass_to_pass_is_refused(estimator: FisherEstimator) -> None:
    model, batch = problem("mlp")
    generator = torch.Generator().manual_seed(0)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return squared_error(model, batch) * torch.rand(len(batch[0]), generator=generator)

    with pytest.raises(ValueError, match="changes from pass to pass"):
        try_out(estimator, model, loss, [batch])


@pytest.mark.parametrize(
    ("estimator", "loss"),
    [
        (DiagonalFisher(), scalar),
        (DiagonalFisher(residual="model"), squared_error),
        (DiagonalFisher(residual="negated_logits"), LOSS),
        (DiagonalFisher(weighting=OutputNormalized(tau=0.1, geometry="sliced")), LOSS),
        (MeanGradientFisher(include=["nothing"]), squared_error),
        (DiagonalFisher(), lambda model, batch: squared_error(model, batch) / 0.0),
        (BandedFisher(DiagonalFisher(), lambda batch: torch.zeros(1).long(), names=["one"]), squared_error),
    ],
    ids=["scalar loss", "no output", "no logits", "no image", "no parameter", "not finite", "bands"],
)
def test_what_the_estimate_refuses_is_refused_at_once(estimator: FisherEstimator, loss: object) -> None:
    model, batch = problem("mlp")
    with pytest.raises(Exception, match=".") as expected:
        estimate(estimator, model, loss, [batch])  # type: ignore[arg-type]
    with pytest.raises(expected.type, match=".") as found:
        try_out(estimator, model, loss, [batch])  # type: ignore[arg-type]
    assert str(found.value) == str(expected.value)
