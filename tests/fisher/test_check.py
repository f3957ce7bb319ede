from __future__ import annotations

import pytest
import torch
from torch import nn

from cl_diffusion.fisher import (
    DiagonalFisher,
    LeadingEigenpairsFisher,
    SketchedDiagonalFisher,
    check,
    estimate,
)
from cl_diffusion.keys import keyed_normal
from cl_diffusion.linalg import Diagonal
from tests.fisher.laws import batches, problem, squared_error


def test_an_exact_diagonal_passes_and_a_scaled_one_is_told_by_its_scale() -> None:
    model, data = problem("conv")
    operator = estimate(DiagonalFisher(), model, squared_error, batches(data, 5))
    found = check(operator, model, squared_error, batches(data, 4))
    assert found.samples == 13
    assert found.diagonal_error < 1e-12
    assert found.scale == pytest.approx(1.0)
    assert found.trace_ratio == pytest.approx(1.0)
    assert found.no_importance == found.no_gradient == ()
    assert check(operator.scaled(64.0), model, squared_error, batches(data, 4)).scale == pytest.approx(64.0)


def test_a_squared_batch_gradient_does_not_pass() -> None:
    model, data = problem("conv")
    squared_error(model, data).mean().backward()
    batched = Diagonal({n: p.grad.square() for n, p in model.named_parameters() if p.grad is not None})
    assert check(batched, model, squared_error, [data]).diagonal_error > 0.5


def test_all_eigenpairs_pass_in_products_and_one_does_not() -> None:
    model, data = problem("mlp", samples=6)
    full, one = (estimate(LeadingEigenpairsFisher(rank), model, squared_error, [data]) for rank in (6, 1))
    assert check(full, model, squared_error, [data]).product_error < 1e-6
    assert check(one, model, squared_error, [data]).product_error > 1e-3


def test_only_so_many_samples_are_taken_on_the_draws_of_the_estimate() -> None:
    model, (x, y) = problem("mlp")

    def draw(batch: tuple[torch.Tensor, ...], keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return batch[0], batch[1] + keyed_normal(keys, (2,)).double()

    first = [(x[:5], y[:5])]
    operator = estimate(DiagonalFisher(), model, squared_error, first, draw=draw, seed=3)
    found = check(operator, model, squared_error, batches((x, y), 4), samples=5, draw=draw, seed=3)
    assert found.samples == 5
    assert found.diagonal_error < 1e-12


def test_rows_of_zeros_are_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)}).double()
    data = (torch.randn(7, 3).double(), torch.randn(7, 2).double())

    def loss(m: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return squared_error(m["used"], batch)  # type: ignore[index]

    operator = estimate(DiagonalFisher(), model, loss, [data])
    blind = Diagonal({n: torch.zeros_like(v) if n == "used.bias" else v for n, v in operator.diagonal().items()})
    found = check(blind, model, loss, [data])
    assert found.no_gradient == ("unused.weight", "unused.bias")
    assert found.no_importance == ("used.bias", "unused.weight", "unused.bias")
    text = str(found)
    assert "no importance although there are gradients: used.bias" in text
    assert "no gradient in any sample: unused.weight, unused.bias" in text


def test_the_model_is_left_as_found_and_nothing_to_compare_with_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double()
    data = (torch.randn(4, 3).double(), torch.randn(4, 2).double())
    operator = estimate(SketchedDiagonalFisher(), model, squared_error, [data])
    state = torch.get_rng_state()
    check(operator, model, squared_error, [data])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="no sample"):
        check(operator, model, squared_error, [])
