"""Steps along a direction: derivatives against dense ones, and changes against taking the step by hand."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from cl_diffusion.fisher import CrossEntropy, OutputLoss, SquaredError
from cl_diffusion.fisher.inner_products import combination, inner_products
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.probe import Probe, placed
from cl_diffusion.fisher.residual import Empirical, OfOutput
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import parameters
from tests.fisher.laws import batches, dense_gradients, dense_jacobians, problem, squared_error

LOSS = OutputLoss(SquaredError())


def direction(model: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}


def test_slopes_and_curvatures_are_those_of_the_dense_gradients_and_gauss_newton() -> None:
    model, data = problem("conv")
    u = direction(model)
    flat = parameters.flatten(u)
    found = Probe(Population(model, LOSS, batches(data, 5))).slopes(u)
    torch.testing.assert_close(found.loss, dense_gradients(model, data) @ flat)
    moved = dense_jacobians(model, data[:-1]) @ flat
    torch.testing.assert_close(found.output, moved.square().mean(1))
    torch.testing.assert_close(found.curvature, 2 / moved.shape[1] * moved.square().sum(1))


def test_the_curvature_of_a_cross_entropy_is_its_own() -> None:
    model, (x, _) = problem("mlp")
    labels = torch.arange(len(x)) % 2
    u = direction(model)
    found = Probe(Population(model, OutputLoss(CrossEntropy()), [(x, labels)])).slopes(u)
    moved = dense_jacobians(model, (x,)) @ parameters.flatten(u)
    p = model(x).softmax(1).detach()
    expected = (p * moved.square()).sum(1) - (p * moved).sum(1).square()
    torch.testing.assert_close(found.curvature, expected)


def test_changes_are_those_of_the_step_and_leave_the_model_bit_for_bit() -> None:
    model, data = problem("normed")
    model.train()
    before = deepcopy(model.state_dict())
    u = parameters.scale(direction(model), 0.1)
    found = Probe(Population(model, LOSS, batches(data, 4))).changes(u)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    model.eval()
    there = deepcopy(model)
    with torch.no_grad():
        for name, p in there.named_parameters():
            p += u[name]
        x, y = data
        here, after = model(x), there(x)
        torch.testing.assert_close(found.loss, squared_error(there, data) - squared_error(model, data))
    torch.testing.assert_close(found.output, (after - here).square().mean(1))
    residual = torch.nn.functional.normalize(here - y, dim=1)
    torch.testing.assert_close(found.along_residual, ((after - here) * residual).sum(1).square())


def test_a_plain_loss_has_slopes_and_changes_alone() -> None:
    model, data = problem("linear")
    probe = Probe(Population(model, squared_error, batches(data, 4)))
    u = direction(model)
    assert (probe.slopes(u).curvature, probe.changes(u).output) == (None, None)
    torch.testing.assert_close(probe.slopes(u).loss, dense_gradients(model, data) @ parameters.flatten(u))
    with pytest.raises(ValueError, match="no samples"):
        Probe(Population(model, squared_error, []))


def test_a_model_is_put_back_when_a_step_fails() -> None:
    model, _ = problem("linear")
    before = deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="here"), placed(model, direction(model)):
        raise RuntimeError("here")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_statistics_are_put_in_place_as_weights_are() -> None:
    model = torch.nn.BatchNorm1d(3).eval()
    x, before = torch.randn(5, 3), deepcopy(model.state_dict())
    with placed(model, {"weight": 2 * torch.ones(3), "running_mean": torch.full((3,), 5.0)}):
        torch.testing.assert_close(model(x), 2 * (x - 5), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_direction_of_known_coordinates_is_the_combination_of_gradients() -> None:
    model, (x, y) = problem("mlp", 13)
    sources = [
        Samples(Population(model, LOSS, batches((x[a], y[a]), 4)), Empirical()) for a in (slice(9), slice(9, 13))
    ]
    found = inner_products(sources)
    coordinates = torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vector = parameters.flatten(combination(sources, found, coordinates))
    torch.testing.assert_close(vector, dense_gradients(model, (x, y)).T @ coordinates)
    assert float(vector @ vector) == pytest.approx(float(coordinates @ found.products @ coordinates))


def test_the_gradient_of_another_output_has_its_residual_and_this_model_s_jacobian() -> None:
    model, (x, y) = problem("mlp", 9)
    other = 0.3 * y + 0.1
    loss = OutputLoss(SquaredError())
    source = Samples(Population(model, loss, [(x, y)]), OfOutput(lambda model, batch: 0.3 * batch[1] + 0.1))
    jacobians = dense_jacobians(model, (x,))
    expected = torch.einsum("nd,ndp->np", 2 / y.shape[1] * (other - y), jacobians)
    torch.testing.assert_close(inner_products([source]).products, expected @ expected.T)
