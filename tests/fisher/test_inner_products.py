"""Inner products of per-sample gradients: those of the gradients themselves, whatever fits the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import LossGradients, OutputLoss, SquaredError
from cl_diffusion.fisher.inner_products import inner_products
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.residual import Empirical
from cl_diffusion.fisher.samples import Samples
from tests.fisher.laws import problem

LOSS = OutputLoss(SquaredError())


def gradients(model: nn.Module, batch: Any) -> Tensor:
    chunks = LossGradients(model, LOSS).per_sample(batch)
    return torch.cat([torch.cat([g.flatten(1) for g in chunk.values()], 1) for chunk in chunks])


def source(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Samples:
    batches = list(zip(x.split(4), y.split(4), strict=True))
    return Samples(Population(model, LOSS, batches, **options), Empirical())


@pytest.mark.parametrize("kilobytes", [1024, 8, 1e-3])
def test_they_are_those_of_the_gradients_themselves_within_any_budget(kilobytes: float) -> None:
    model, (x, y) = problem("mlp", 13)
    model.train()
    found = inner_products([source(model, x[:9], y[:9]), source(model, x[9:], y[9:])], int(kilobytes * 1024))
    assert model.training
    g = gradients(model.eval(), (x, y)).double()
    torch.testing.assert_close(found.products, g @ g.T)
    assert found.counts == [9, 4]
    assert found.members(1).tolist() == [9, 10, 11, 12]


def test_what_has_no_inner_products_is_refused() -> None:
    model, (x, y) = problem("mlp", 4)
    with pytest.raises(ValueError, match="no samples"):
        inner_products([source(model, x[:0], y[:0])])
    other = Samples(Population(model, LOSS, [(x, y)]), Empirical(), selects=lambda name: "bias" in name)
    with pytest.raises(ValueError, match="different parameters"):
        inner_products([source(model, x, y), other])
    x[2] = torch.inf
    with pytest.raises(FloatingPointError, match="gradient of sample 2 is not finite"):
        inner_products([source(model, x, y, draw=lambda batch, keys: batch)])
