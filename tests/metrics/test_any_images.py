"""Whatever images or features are measured, the figure is a number of its range, NaN where it says so, or refused."""

from __future__ import annotations

import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cl_diffusion.metrics.frechet import FrechetDistance
from cl_diffusion.metrics.gram import Gram
from cl_diffusion.metrics.half_samples import with_error
from cl_diffusion.metrics.plasticity import effective_rank, stable_rank
from cl_diffusion.metrics.stability import stability
from tests.outcome import outcome

VALUES = [math.nan, math.inf, -math.inf, 0.0, 1.0, 1e-30, 1e30]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FEW = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def matrices(draw: st.DrawFn, columns: int | None = None) -> Tensor:
    rows = draw(st.integers(0, 6))
    found = torch.randn(rows, columns or draw(st.integers(0, 5)))
    kind = draw(st.sampled_from(["random", "one value", "constant", "alike"]))
    if kind == "one value" and found.numel():
        found[0, 0] = draw(st.sampled_from(VALUES))
    if kind == "constant":
        found = torch.full_like(found, draw(st.sampled_from(VALUES)))
    if kind == "alike" and rows:
        found = found[:1].expand_as(found).clone()
    return found.to(draw(st.sampled_from(TYPES)))


@FEW
@given(matrices())
@example(torch.zeros(0, 3))
@example(torch.zeros(3, 0))
@example(torch.ones(1, 4))
@example(torch.full((2, 2), 1e-30))
@example(torch.ones(3, 3).half())
def test_ranks_lie_between_one_and_the_smaller_side(features: Tensor) -> None:
    for rank in (effective_rank, stable_rank):
        found = rank(features)
        nothing = not features.isfinite().all() or not features.any()
        assert math.isnan(found) if nothing else 1 - 1e-6 <= found <= min(features.shape) * (1 + 1e-6)


@FEW
@given(matrices(columns=4), matrices(columns=4))
@example(torch.zeros(1, 4), torch.zeros(3, 4))  # one image has no covariance
@example(torch.zeros(3, 4), torch.zeros(0, 4))
@example(torch.ones(5, 4), torch.ones(2, 4))
@example(torch.full((3, 4), math.nan), torch.zeros(3, 4))
@example(torch.zeros(3, 4), torch.full((3, 4), math.inf))
@example(torch.full((3, 4), 1e30), torch.zeros(3, 4))
def test_a_frechet_distance_is_a_distance_or_refused(real: Tensor, generated: Tensor) -> None:
    def distance() -> float:
        metric = FrechetDistance(nn.Flatten(), 4)
        metric.add_real(real.float().reshape(-1, 1, 2, 2))
        return metric(generated.float().reshape(-1, 1, 2, 2))

    found = outcome(distance, "images|features")
    assert found is None or (math.isfinite(found) and found >= -1e-3 * (1 + float(real.float().square().sum())))


@FEW
@given(matrices())
@example(torch.zeros(0, 0))
@example(torch.zeros(1, 1))
@example(torch.zeros(4, 4))
@example(torch.ones(3, 2))
@example(torch.full((2, 2), math.nan))
def test_inner_products_have_a_spectrum_or_are_refused(vectors: Tensor) -> None:
    def spectrum() -> object:
        products = vectors.double() @ vectors.double().T
        gram = Gram(products)
        direction = gram.leading(torch.arange(len(gram)))
        assert bool(direction.isfinite().all())
        return stability(products) if len(gram) % 2 == 0 else direction

    outcome(spectrum, "products")


@FEW
@given(st.integers(0, 9))
@example(3)
@example(4)
def test_so_many_samples_have_an_error_or_are_refused(count: int) -> None:
    values = torch.arange(float(count))
    found = outcome(
        lambda: with_error(lambda of: {"mean": float(values[of["a"]].mean())}, {"a": torch.arange(count)}), "samples"
    )
    assert (found is None) == (count < 4)
