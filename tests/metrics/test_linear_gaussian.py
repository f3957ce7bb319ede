"""What the estimators and the spectra return of a model whose Fishers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_diffusion.fisher import DiagonalFisher, LossGradients, estimate
from cl_diffusion.linalg import Diagonal
from cl_diffusion.metrics.gram import Gram, Spectrum
from cl_diffusion.metrics.linear_gaussian import LinearGaussian
from cl_diffusion.metrics.stability import stability

GAMMA, OFFSET = 0.8, 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_offset(dimension: int, samples: int, **options: float) -> tuple[LinearGaussian, Tensor, Tensor]:
    """The model at ``A = (gamma + a) I``, inputs, and targets ``gamma x``."""
    model = LinearGaussian(dimension, **options)
    with torch.no_grad():
        model.weight.copy_((GAMMA + OFFSET) * torch.eye(dimension))
    x = model.inputs(samples, generator())
    return model, x, GAMMA * x


def test_the_gradients_are_those_of_the_loss() -> None:
    model, x, y = at_offset(3, 20, sigma=0.7, remainder=0.5)
    (found,) = LossGradients(model, model.loss).per_sample((x, y))
    torch.testing.assert_close(found["weight"].flatten(1), model.gradients(x, y))


@pytest.mark.parametrize(("sigma", "tau"), [(1.0, 1.0), (0.5, 2.0)])
def test_the_true_fisher_is_isotropic(sigma: float, tau: float) -> None:
    """All of it, by the model's own targets: a multiple of the identity, to Monte-Carlo error."""
    model = LinearGaussian(3, sigma, tau)
    x = model.inputs(60_000, generator())
    y = model(x).detach() + sigma * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    g = model.gradients(x, y)
    known = tau**2 / sigma**2
    torch.testing.assert_close(g.T @ g / len(g), known * torch.eye(9, dtype=torch.float64), atol=0.05 * known, rtol=0)
    operator = estimate(DiagonalFisher(residual="expectation"), model, model.loss, [(x, y)])
    assert isinstance(operator, Diagonal)
    torch.testing.assert_close(
        operator.values["weight"], torch.full((3, 3), known, dtype=torch.float64), rtol=0.03, atol=0
    )


def test_the_divergence_is_quadratic_and_the_same_in_every_direction() -> None:
    model = LinearGaussian(4, sigma=0.5, tau=1.5)
    x = model.inputs(200_000, generator())
    leading = torch.eye(4, dtype=torch.float64) / 2  # the empirical Fisher's direction near pure noise, unit length
    other = torch.randn(4, 4, generator=generator(1), dtype=torch.float64)
    for direction in (leading, other / other.norm()):
        for radius in (0.1, 3.0):
            measured = (x @ (radius * direction).T).square().sum(1).mean() / (2 * model.sigma**2)
            assert float(measured) == pytest.approx(model.divergence(radius * direction), rel=0.02)
            assert model.divergence(radius * direction) == pytest.approx(radius**2 * 4.5)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_empirical_fisher_has_the_leading_share_of_its_formula(dimension: int) -> None:
    model, x, y = at_offset(dimension, 800)
    g = model.gradients(x, y)
    found: Spectrum = Gram(g @ g.T).spectrum()
    assert found.leading_share == pytest.approx(1 / dimension, rel=0.1)
    symmetric = dimension * (dimension + 1) // 2
    if dimension > 1:  # all the others are one eigenvalue, which samples spread
        others = found.eigenvalues[1:symmetric].mean() / found.eigenvalues[0]
        assert float(others) == pytest.approx(2 / (dimension + 2), rel=0.1)
    assert float(found.eigenvalues[symmetric:].max()) < 1e-9  # along what is antisymmetric there is no gradient
    mean = torch.eye(dimension, dtype=torch.float64).flatten() / math.sqrt(dimension)
    exact = torch.nn.functional.cosine_similarity(g, mean[None])
    torch.testing.assert_close(exact, torch.full_like(exact, 1 / math.sqrt(dimension)))
    assert found.cosine_to_mean == pytest.approx(1 / math.sqrt(dimension), rel=0.05)
    assert found.mean_to_leading == pytest.approx(1.0, abs=0.05)


def test_a_remainder_moves_the_direction_within_the_bounds() -> None:
    found = []
    for remainder in (0.0, 0.05, 0.2, 0.8):
        model, x, y = at_offset(3, 200, remainder=remainder)
        linear, _, _ = at_offset(3, 200)
        both = torch.cat([model.gradients(x, y), linear.gradients(x, y)])
        found.append(stability(both @ both.T))
    ratios = [each.ratio for each in found]
    assert ratios == sorted(ratios)
    assert ratios[0] < 1e-6
    assert ratios[1] < 0.5 < ratios[3]
    for each in found:
        assert each.sine <= min(each.bound, each.sharp_bound, each.residual_bound) + 1e-6
    assert found[1].sine > found[0].sine + 1e-3


def test_what_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dimension=2, sigma=0.0, tau=1.0; expected all of them positive"):
        LinearGaussian(2, sigma=0.0)
