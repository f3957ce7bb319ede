"""Whatever a batch holds, an estimate is a matrix of finite numbers or one clear error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_diffusion.bands import Bands
from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    IsotropicFisher,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    OutputSensitivity,
    PathIntegral,
    RandomDirectionFisher,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
)
from cl_diffusion.linalg import Operator
from tests.fisher.laws import batches, problem
from tests.outcome import outcome

ESTIMATORS = [
    DiagonalFisher(),
    DiagonalFisher(residual="model"),
    DiagonalFisher(residual="expectation"),
    DiagonalFisher(weighting=OutputNormalized(tau=1e-3)),
    IsotropicFisher(),
    KroneckerFisher(),
    KroneckerFisher(corrected=False),
    LeadingEigenpairsFisher(rank=2),
    MeanGradientFisher(),
    MeanGradientFisher(coefficient="plain"),
    OutputSensitivity(),
    RandomDirectionFisher(),
    SketchedDiagonalFisher(),
]
LOSS = OutputLoss(SquaredError())
VALUES = [math.nan, math.inf, -math.inf, 0.0, 1.0, 1e200, -1e308, 1e-320]
TYPES = [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]
OF_THE_BATCH = r"sample|batch|loss"


@st.composite
def batch_of_any_kind(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a small network, of which something may be wrong."""
    samples = draw(st.integers(0, 7))
    x, y = torch.randn(samples, draw(st.sampled_from([3, 3, 3, 4]))), torch.randn(samples, 2)
    kind = draw(st.sampled_from(["as it is", "one value", "constant", "type", "too few targets"]))
    value = draw(st.sampled_from(VALUES))
    where = draw(st.sampled_from([x, y])) if samples else x
    x, y, where = x.double(), y.double(), where
    if kind == "one value" and samples:
        (x if draw(st.booleans()) else y)[draw(st.integers(0, samples - 1)), 0] = value
    if kind == "constant":
        x, y = torch.full_like(x, value), torch.full_like(y, 0.5)
    if kind == "type":
        x = x.to(draw(st.sampled_from(TYPES)))
    if kind == "too few targets":
        y = y[: draw(st.integers(0, samples))]
    return x, y


def with_a_bad_input(value: float, samples: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.zeros(samples, 3, dtype=torch.float64)
    x[2 % samples] = value
    return x, torch.ones(samples, 2, dtype=torch.float64)


def finite(operator: Operator) -> Operator:
    assert all(bool(values.isfinite().all()) for values in operator.diagonal().values())
    assert math.isfinite(float(operator.trace()))
    return operator


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: ", ".join(list(e.identity().values())[:3]))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(batch_of_any_kind(), st.integers(1, 9))
@example(with_a_bad_input(math.nan), 2)
@example(with_a_bad_input(math.nan), 9)  # in the first batch, which passes compare with each other
@example(with_a_bad_input(math.inf), 2)
@example(with_a_bad_input(1e300), 9)
@example(with_a_bad_input(0.0, samples=1), 1)
def test_an_estimate_is_finite_or_refused(
    estimator: FisherEstimator, batch: tuple[Tensor, Tensor], batch_size: int
) -> None:
    model = problem("mlp")[0]
    data = [batch] if len(batch[0]) != len(batch[1]) or not len(batch[0]) else batches(batch, batch_size)
    found = outcome(lambda: finite(estimate(estimator, model, LOSS, data)), OF_THE_BATCH)
    x, y = batch
    right = len(x) == len(y) > 0 and x.shape[1] == 3 and x.dtype == y.dtype
    moderate = right and all(bool((part.abs() < 1e3).all()) for part in batch)
    assert found is not None or not moderate


def in_bands(bands: Callable[[Any], Tensor], x: Tensor) -> Operator | None:
    class Halves(Bands):
        names = ("low", "high")  # type: ignore[assignment]

        def __call__(self, batch: Any) -> Tensor:
            return bands(batch)

        def describe(self) -> str:
            return "halves"

    model = problem("mlp")[0]
    estimator = BandedFisher(DiagonalFisher(), Halves())
    return outcome(
        lambda: finite(estimate(estimator, model, LOSS, [(x, torch.zeros(len(x), 2).double())])), "band|sample|batch"
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 3), max_size=6), st.sampled_from([torch.int64, torch.float32, torch.int8]))
@example([], torch.int64)
@example([-1, -1], torch.int64)
@example([0, 5], torch.int64)
def test_bands_of_any_position_are_served_or_refused(positions: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(len(positions), 3, dtype=torch.float64)
    in_bands(lambda batch: torch.tensor(positions, dtype=dtype), x)


@pytest.mark.parametrize("estimator", [KroneckerFisher(), LeadingEigenpairsFisher(rank=1)], ids=lambda e: e.name)
def test_no_number_is_no_other_order(estimator: FisherEstimator) -> None:
    x, y = with_a_bad_input(math.nan)
    with pytest.raises(FloatingPointError, match="1 of the 5 samples"):
        estimate(estimator, problem("mlp")[0], LOSS, [(x, y)])


def test_a_model_that_does_not_take_a_batch_says_what_the_batch_holds() -> None:
    x, y = with_a_bad_input(0.0)
    with pytest.raises(RuntimeError, match=r"float32 \(5, 3\).*whose parameters are torch\.float64"):
        estimate(DiagonalFisher(), problem("mlp")[0], LOSS, [(x.float(), y)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_path_that_is_not_finite_is_no_importance(bad: float) -> None:
    theta = {"w": torch.zeros(2)}
    path = PathIntegral(theta, damping=0.1)
    path.before_step({"w": torch.tensor([1.0, bad])}, theta)
    path.after_step({"w": torch.ones(2)})
    with pytest.raises(FloatingPointError, match="'w' is not finite"):
        path.operator({"w": torch.ones(2)})
