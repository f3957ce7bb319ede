"""Residuals: the true Fisher and its kin against dense generalised Gauss-Newton matrices."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import (
    CrossEntropy,
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
)
from cl_diffusion.keys import derive_keys
from cl_diffusion.linalg import parameters
from tests.fisher.laws import (
    batches,
    dense_gradients,
    dense_jacobians,
    dense_operator,
    problem,
    second_moment,
    squared_error,
)

MEAN_SQUARE = OutputLoss(SquaredError())
CLASSIFICATION = OutputLoss(CrossEntropy())


def classifier(samples: int = 11) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, (torch.randn(samples, 3, dtype=torch.float64), torch.arange(samples) % 3)


def gauss_newton_of_squared_error(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    j = dense_jacobians(model, inputs)
    return 2 / j.shape[1] * torch.einsum("ndp,ndq->pq", j, j) / len(j)


def gauss_newton_of_cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    j, p = dense_jacobians(model, (x,)), model(x).detach().softmax(1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", j, hessian, j) / len(x)


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv"])
def test_the_expectation_is_the_gauss_newton_matrix_of_a_squared_error(kind: str) -> None:
    model, data = problem(kind)
    expected = gauss_newton_of_squared_error(model, data[:-1])
    rank = len(expected)
    estimator = LeadingEigenpairsFisher(rank, residual="expectation", tolerance=1e-12, max_steps=rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        full = estimate(estimator, model, MEAN_SQUARE, batches(data, 5))
    torch.testing.assert_close(dense_operator(full, model), expected, rtol=1e-8, atol=1e-10)
    diagonal = estimate(DiagonalFisher(residual="expectation"), model, MEAN_SQUARE, batches(data, 5))
    torch.testing.assert_close(parameters.flatten(diagonal.diagonal()), expected.diagonal())
    assert diagonal.provenance.record[0]["samples"] == len(data[0])


def test_the_expectation_is_the_gauss_newton_matrix_of_a_cross_entropy() -> None:
    model, (x, y) = classifier()
    expected = gauss_newton_of_cross_entropy(model, x)
    diagonal = estimate(DiagonalFisher(residual="expectation"), model, CLASSIFICATION, batches((x, y), 4))
    torch.testing.assert_close(parameters.flatten(diagonal.diagonal()), expected.diagonal())


@pytest.mark.parametrize(
    "estimator", [DiagonalFisher(residual="model"), SketchedDiagonalFisher(residual="model")], ids=lambda e: e.name
)
@pytest.mark.parametrize("criterion", ["squared error", "cross-entropy"])
def test_drawn_targets_give_the_gauss_newton_matrix_in_expectation(estimator: FisherEstimator, criterion: str) -> None:
    """400 draws; the bound is 5 standard errors of the mean over draws, entry by entry."""
    if criterion == "squared error":
        model, data = problem("mlp")
        loss, expected = MEAN_SQUARE, gauss_newton_of_squared_error(model, data[:-1]).diagonal()
    else:
        model, data = classifier()
        loss, expected = CLASSIFICATION, gauss_newton_of_cross_entropy(model, data[0]).diagonal()
    draws = torch.stack(
        [parameters.flatten(estimate(estimator, model, loss, [data], seed=seed).diagonal()) for seed in range(400)]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() < 5 * error + 1e-12).all())
    assert float(error.max() / expected.max()) < 0.1


def test_a_weight_of_the_loss_weighs_the_true_fisher_once_and_the_empirical_one_squared() -> None:
    model, data = problem("mlp")
    weighted = OutputLoss(SquaredError(), weight=lambda m, batch: torch.full((len(batch[0]),), 9.0).double())
    for residual, factor in (("empirical", 81.0), ("expectation", 9.0), ("model", 9.0)):
        plain = estimate(DiagonalFisher(residual=residual), model, MEAN_SQUARE, [data])
        scaled = estimate(DiagonalFisher(residual=residual), model, weighted, [data])
        torch.testing.assert_close(scaled.diagonal()["0.weight"], factor * plain.diagonal()["0.weight"])


def test_drawn_targets_follow_the_models_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64).expand(20_000, 3)
    criterion = CrossEntropy()
    keys = derive_keys(0, torch.arange(20_000))
    labels = criterion.sampled_target(logits, criterion.randomness(torch.zeros(20_000, dtype=torch.int64), keys))
    shares = torch.bincount(labels, minlength=3) / 20_000
    torch.testing.assert_close(shares.double(), logits[0].softmax(0), atol=0.015, rtol=0)
    squared = SquaredError()
    target = torch.zeros(20_000, 8, dtype=torch.float64)
    drawn = squared.sampled_target(target, squared.randomness(target, keys))
    assert float(drawn.var()) == pytest.approx(4.0, rel=0.03)


def test_negated_logits_are_the_empirical_fisher_of_the_negated_model() -> None:
    model, data = classifier()
    expected = dense_gradients(model, data, lambda m, b: nn.functional.cross_entropy(-m(b[0]), b[1], reduction="none"))
    operator = estimate(DiagonalFisher(residual="negated_logits"), model, CLASSIFICATION, batches(data, 4))
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), second_moment(expected).diagonal())


def test_an_output_loss_is_its_criterion_of_its_output() -> None:
    model, data = problem("mlp")
    torch.testing.assert_close(MEAN_SQUARE(model, data), squared_error(model, data))
    one, other = (estimate(DiagonalFisher(), model, loss, [data]) for loss in (MEAN_SQUARE, squared_error))
    torch.testing.assert_close(one.diagonal(), other.diagonal())


def test_a_residual_that_lacks_its_output_or_has_no_mean_is_refused() -> None:
    model, data = problem("mlp")
    for residual in ("model", "expectation", "negated_logits"):
        with pytest.raises(ValueError, match=f"residual='{residual}' needs the model's output.*OutputLoss"):
            estimate(DiagonalFisher(residual=residual), model, squared_error, [data])
    for residual in ("model", "expectation"):
        with pytest.raises(ValueError, match=f"residual='{residual}' has a mean gradient of zero.*LeadingEigenpairs"):
            MeanGradientFisher(residual=residual)
    with pytest.raises(ValueError, match="residual='true'; expected one of 'empirical'"):
        DiagonalFisher(residual="true")  # type: ignore[arg-type]
    loss = OutputLoss(CrossEntropy(), output=lambda m, b: m(b[0])[..., None], target=lambda m, b: b[1].argmax(1))
    with pytest.raises(ValueError, match=r"output has shape \(8, 2, 1\); cross-entropy expects logits"):
        estimate(DiagonalFisher(residual="model"), model, loss, [data])


def test_the_empirical_fisher_of_a_few_images_has_no_more_than_their_rank() -> None:
    """4 images of 6x6: rank 4, where flattening rows into samples would find 24."""
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 3, padding=1).double()
    wide = nn.Sequential(model, nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)).double()
    data = (torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.randn(4, 1, 6, 6, dtype=torch.float64))
    operator = estimate(LeadingEigenpairsFisher(rank=12), wide, MEAN_SQUARE, [data])
    assert operator.rank == 4
    expected = second_moment(dense_gradients(wide, data, MEAN_SQUARE))
    torch.testing.assert_close(dense_operator(operator, wide), expected, rtol=1e-6, atol=1e-6 * float(expected.max()))


def test_kronecker_with_drawn_targets_is_the_kronecker_of_the_drawn_loss() -> None:
    model, data = problem("linear", samples=1)
    exact = gauss_newton_of_squared_error(model, data[:-1])
    operator = estimate(KroneckerFisher(residual="expectation"), model, MEAN_SQUARE, [data])
    torch.testing.assert_close(dense_operator(operator, model), exact)
