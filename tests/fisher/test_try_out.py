"""What does not fit is refused on a first batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
from tests.fisher.laws import problem, squared_error

LOSS = OutputLoss(SquaredError())
FITTING: list[FisherEstimator] = [
    DiagonalFisher(),
    DiagonalFisher(residual="model"),
    DiagonalFisher(weighting=OutputNormalized(kappa=0.01)),
    SketchedDiagonalFisher(),
    MeanGradientFisher(),
    MeanGradientFisher(coefficient="plain"),
    LeadingEigenpairsFisher(rank=10),
    KroneckerFisher(),
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


def scalar(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return squared_error(model, batch).mean()


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
