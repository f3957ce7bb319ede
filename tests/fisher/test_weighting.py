"""Weights on samples, and output normalisation in its geometries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import (
    CrossEntropy,
    DiagonalFisher,
    FisherEstimator,
    GivenWeights,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    SquaredError,
    Weighting,
    estimate,
)
from cl_diffusion.linalg import LowRank, parameters
from tests.fisher.laws import (
    batches,
    dense_gradients,
    dense_operator,
    problem,
    second_moment,
    squared_error,
)

LOSS = OutputLoss(SquaredError())


def residual_gradients(model: nn.Module, data: tuple[Tensor, ...]) -> Tensor:
    """``dl/df`` by hand: ``(2/d)(f - y)``."""
    *inputs, target = data
    return 2 / target[0].numel() * (model(*inputs) - target).detach()


def images(samples: int = 6) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 2, 3, padding=1).double()
    return model, (torch.randn(samples, 1, 4, 5).double(), torch.randn(samples, 2, 4, 5).double())


def weighted_second_moment(gradients: Tensor, weights: Tensor, normaliser: float) -> Tensor:
    return (gradients * weights[:, None]).T @ gradients / normaliser


ESTIMATORS: list[Any] = [
    lambda w: DiagonalFisher(weighting=w),
    lambda w: MeanGradientFisher(weighting=w),
    lambda w: LeadingEigenpairsFisher(rank=2, weighting=w),
    lambda w: LeadingEigenpairsFisher(rank=13, weighting=w),
    lambda w: KroneckerFisher(corrected=True, weighting=w),
]


@pytest.mark.parametrize("make", ESTIMATORS, ids=lambda make: make(None).name)
@pytest.mark.parametrize("tau", [1e-3, 10.0])
def test_output_normalisation_weighs_every_estimator_alike(make: Any, tau: float) -> None:
    model, data = problem("mlp")
    s = residual_gradients(model, data).square().sum(1)
    g = dense_gradients(model, data)
    expected = weighted_second_moment(g, 1 / (s + tau), len(g))
    operator = estimate(make(OutputNormalized(tau=tau)), model, LOSS, batches(data, 5))
    found = dense_operator(operator, model)
    if operator.kind == "diagonal":
        torch.testing.assert_close(found, expected.diagonal().diag())
    elif operator.kind == "block_diagonal":
        torch.testing.assert_close(operator.trace(), expected.trace())
    elif "mean gradient" in operator.provenance.identity["estimator"]:
        mu = (g / (s + tau).sqrt()[:, None]).mean(0)
        mu = mu / mu.norm()
        torch.testing.assert_close(found, (mu @ expected @ mu) * torch.outer(mu, mu))
    else:
        assert isinstance(operator, LowRank)
        values, vectors = torch.linalg.eigh(expected)
        kept = vectors[:, -operator.rank :]
        best = kept * values[-operator.rank :] @ kept.T
        torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6 * float(values[-1]))


def test_of_a_mean_squared_error_the_size_of_the_residual_is_four_over_d_times_the_loss() -> None:
    model, data = problem("conv")
    torch.testing.assert_close(
        residual_gradients(model, data).square().sum(1), 4 / 2 * squared_error(model, data).detach()
    )
    with_output = estimate(DiagonalFisher(weighting=OutputNormalized(tau=1e-3)), model, LOSS, batches(data, 5))
    from_loss = OutputNormalized(tau=1e-3, elements=2)
    assert not from_loss.needs_output
    without = estimate(DiagonalFisher(weighting=from_loss), model, squared_error, batches(data, 5))
    torch.testing.assert_close(with_output.diagonal(), without.diagonal())


def dual_on_the_zero_sum_tangent(r: Tensor) -> Tensor:
    """``max (r^T d)^2 / d^T G d`` over zero-sum ``d``, ``G = C^T C / (n-1)``, ``C`` the first n - 1 cumulative sums."""
    n = len(r)
    cumulative = torch.tril(torch.ones(n, n, dtype=r.dtype))[:-1]
    metric = cumulative.T @ cumulative / (n - 1)
    basis = torch.linalg.svd(torch.ones(1, n, dtype=r.dtype)).Vh[1:].T
    projected = basis.T @ r
    return projected @ torch.linalg.solve(basis.T @ metric @ basis, projected)


def test_wasserstein_is_the_dual_of_the_cumulative_sum_metric_on_each_slice() -> None:
    model, data = images()
    r = residual_gradients(model, data)
    rows = torch.stack([torch.stack([dual_on_the_zero_sum_tangent(x) for x in one.flatten(0, 1)]).mean() for one in r])
    columns = torch.stack(
        [torch.stack([dual_on_the_zero_sum_tangent(x) for x in one.mT.flatten(0, 1)]).mean() for one in r]
    )
    g = dense_gradients(model, data, LOSS)
    for geometry, s in (("wasserstein", rows), ("sliced", (8 * rows + 10 * columns) / 18)):
        weighting = OutputNormalized(tau=1e-3, geometry=geometry)  # type: ignore[arg-type]
        operator = estimate(DiagonalFisher(weighting=weighting), model, LOSS, batches(data, 4))
        expected = weighted_second_moment(g, 1 / (s + 1e-3), len(g)).diagonal()
        torch.testing.assert_close(parameters.flatten(operator.diagonal()), expected)


def test_kappa_is_a_share_of_the_median_of_what_is_not_zero() -> None:
    model, (x, y) = problem("mlp", samples=6)
    y[0] = model(x).detach()[0]
    s = residual_gradients(model, (x, y)).square().sum(1)
    tau = 0.01 * float(s[1:].median())
    operator = estimate(DiagonalFisher(weighting=OutputNormalized(kappa=0.01)), model, LOSS, [(x, y)])
    assert operator.provenance.record[0]["tau"] == pytest.approx(tau, rel=1e-9)
    expected = estimate(DiagonalFisher(weighting=OutputNormalized(tau=tau)), model, LOSS, [(x, y)])
    torch.testing.assert_close(operator.diagonal(), expected.diagonal())


def test_given_weights_are_divided_by_their_mean() -> None:
    model, data = problem("mlp")
    h = torch.linspace(0, 3, 13, dtype=torch.float64)
    weighted = (*data[:-1], h, data[-1])

    def loss(m: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return squared_error(m, (batch[0], batch[2]))

    operator = estimate(DiagonalFisher(weighting=GivenWeights(lambda b: b[1])), model, loss, batches(weighted, 5))
    g = dense_gradients(model, data)
    torch.testing.assert_close(
        parameters.flatten(operator.diagonal()), weighted_second_moment(g, h, float(h.sum())).diagonal()
    )


@pytest.mark.parametrize("importance", ["hessian_trace", lambda batch: batch[0][:, 0].square()], ids=["trace", "given"])
def test_importances_weigh_normalised_samples(importance: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    data = (torch.randn(9, 3).double(), torch.arange(9) % 4)
    loss = OutputLoss(CrossEntropy())
    p = model(data[0]).detach().softmax(1)
    s = (p - nn.functional.one_hot(data[1], 4)).square().sum(1)
    h = data[0][:, 0].square() if callable(importance) else 1 - p.square().sum(1)
    g = dense_gradients(model, data, loss)
    weighting = OutputNormalized(tau=0.01, importance=importance)
    operator = estimate(DiagonalFisher(weighting=weighting), model, loss, batches(data, 4))
    torch.testing.assert_close(
        parameters.flatten(operator.diagonal()), weighted_second_moment(g, h / (s + 0.01), float(h.sum())).diagonal()
    )


def test_residual_diversity_is_what_other_gradients_do_not_span() -> None:
    """Two copies of one sample, and one on its own: the copies share what they have, whichever comes first."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    x = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0.6, 0.8, 0]], dtype=torch.float64)
    data = (x, torch.full((4, 1), 5.0, dtype=torch.float64))
    weighting = OutputNormalized(tau=1.0, importance="residual_diversity")
    seen: dict[int, float] = {}

    class Spy(Weighting):
        needs_output = True

        def describe(self) -> str:
            return "spy"

        def fitted(self, samples: Any) -> Any:
            fitted, report = weighting.fitted(samples)
            seen.update(fitted._importance)
            return fitted, report

    operator = estimate(DiagonalFisher(weighting=Spy()), model, LOSS, batches(data, 3))
    assert sorted([seen[0], seen[1]]) == pytest.approx([0.0, 1.0], abs=1e-9)
    assert sorted([seen[2], seen[3]]) == pytest.approx([0.64, 1.0], abs=1e-9)
    h = torch.tensor([seen[i] for i in range(4)], dtype=torch.float64)
    s = residual_gradients(model, data).square().sum(1)
    expected = weighted_second_moment(dense_gradients(model, data), h / (s + 1), float(h.sum())).diagonal()
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), expected)


def test_the_identity_names_the_weighting_and_the_record_what_was_fitted() -> None:
    model, data = problem("mlp")
    operator = estimate(DiagonalFisher(weighting=OutputNormalized(kappa=0.01)), model, LOSS, [data])
    assert operator.provenance.identity["weighting"] == "output-normalised, euclidean, kappa=0.01, uniform importance"
    assert operator.provenance.record[0]["tau"] > 0
    other = estimate(DiagonalFisher(), model, LOSS, [data])
    with pytest.raises(ValueError, match="'weighting' is 'output-normalised.*' in one and 'none'"):
        operator.provenance.combined(other.provenance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of them"),
        ({"tau": 1e-3, "kappa": 0.01}, "exactly one of them"),
        ({"tau": 0.0}, "finite and > 0"),
        ({"kappa": float("nan")}, "finite and > 0"),
        ({"tau": 1.0, "geometry": "published"}, "geometry='published'; expected one of 'euclidean'"),
        ({"tau": 1.0, "importance": "loss"}, "importance='loss'; expected 'uniform'"),
        ({"tau": 1.0, "elements": 0}, "elements=0"),
        ({"tau": 1.0, "elements": 4, "geometry": "sliced"}, "with geometry='euclidean'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutputNormalized(**arguments)


def test_what_cannot_be_weighed_is_refused() -> None:
    model, data = problem("mlp")

    def run(estimator: FisherEstimator, loss: Any = LOSS) -> None:
        estimate(estimator, model, loss, [data])

    with pytest.raises(ValueError, match="does not say what that is; give an OutputLoss"):
        run(DiagonalFisher(weighting=OutputNormalized(tau=1.0)), squared_error)
    with pytest.raises(ValueError, match="'sliced' along the last two: axis -2 needs"):
        run(DiagonalFisher(weighting=OutputNormalized(tau=1.0, geometry="sliced")))
    with pytest.raises(ValueError, match="sample weights range over .*finite and >= 0"):
        run(DiagonalFisher(weighting=GivenWeights(lambda b: b[0][:, 0])))
    with pytest.raises(ValueError, match="sum to 0; expected a positive sum"):
        run(DiagonalFisher(weighting=GivenWeights(lambda b: torch.zeros(len(b[0])))))
    with pytest.raises(ValueError, match="residual='expectation' sums over outcomes"):
        DiagonalFisher(residual="expectation", weighting=OutputNormalized(tau=1.0))


def test_a_weighting_of_ones_changes_nothing() -> None:
    model, data = problem("mlp")
    plain = estimate(DiagonalFisher(), model, LOSS, [data])
    ones = estimate(
        DiagonalFisher(weighting=GivenWeights(lambda b: torch.full((len(b[0]),), 7.0))), model, LOSS, [data]
    )
    torch.testing.assert_close(plain.diagonal(), ones.diagonal())
    torch.testing.assert_close(
        parameters.flatten(plain.diagonal()), second_moment(dense_gradients(model, data)).diagonal()
    )
