from __future__ import annotations

import pytest
import torch

from cl_diffusion.fisher import DiagonalFisher, SketchedDiagonalFisher, estimate
from cl_diffusion.linalg import parameters
from tests.fisher.laws import batches, problem, squared_error


def test_the_sketch_has_the_diagonal_for_its_expectation_and_the_stated_deviation() -> None:
    """400 draws of the signs; entries within 5 standard errors, and the deviation not below sqrt(2/m)."""
    model, data = problem("mlp", samples=16)
    exact = parameters.flatten(estimate(DiagonalFisher(), model, squared_error, [data]).diagonal())
    draws = torch.stack(
        [
            parameters.flatten(
                estimate(SketchedDiagonalFisher(), model, squared_error, batches(data, 4), seed=seed).diagonal()
            )
            for seed in range(400)
        ]
    )
    deviation = draws.std(0)
    assert bool(((draws.mean(0) - exact).abs() < 5 * deviation / 20).all())
    assert float((deviation / exact).median()) < 1.5 * 0.5**0.5
    record = estimate(SketchedDiagonalFisher(), model, squared_error, batches(data, 4)).provenance.record[0]
    assert record["batches"] == 4


def test_batches_of_one_are_exact() -> None:
    model, data = problem("conv")
    exact = estimate(DiagonalFisher(), model, squared_error, [data])
    sketch = estimate(SketchedDiagonalFisher(), model, squared_error, batches(data, 1))
    torch.testing.assert_close(sketch.diagonal(), exact.diagonal())


def test_the_sketch_takes_no_per_sample_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem("conv")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a per-sample gradient was taken")

    monkeypatch.setattr("cl_diffusion.fisher.gradient.LossGradients.per_sample", refuse)
    monkeypatch.setattr("cl_diffusion.fisher.gradient.LossGradients.visit_layers", refuse)
    operator = estimate(SketchedDiagonalFisher(), model, squared_error, batches(data, 5))
    assert float(operator.trace()) > 0


def test_the_signs_are_keyed_and_reseeded() -> None:
    model, data = problem("mlp")
    one, again, other = (
        estimate(SketchedDiagonalFisher(), model, squared_error, [data], seed=seed).diagonal()["0.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
