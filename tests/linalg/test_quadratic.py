from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_diffusion.linalg import Diagonal, Identity, LowRank, Operator, Provenance, Quadratic, merge, parameters

LIKE = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}


def vector(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, dtype=t.dtype, generator=generator) for name, t in LIKE.items()}


def operators() -> list[Operator]:
    return [
        Identity(LIKE, 0.5),
        Diagonal({name: v.abs() for name, v in vector(3).items()}),
        LowRank({name: torch.stack([v, 2 * v + 1]) for name, v in vector(4).items()}, torch.tensor([1.0, 2.0])),
    ]


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.kind)
def test_gradient_is_autograd_of_the_value(operator: Operator) -> None:
    theta = {name: v.requires_grad_() for name, v in vector(1).items()}
    quadratic = Quadratic(operator, vector(2))
    expected = torch.autograd.grad(quadratic.value(theta), list(theta.values()))
    gradient = quadratic.gradient({name: v.detach() for name, v in theta.items()})
    for got, want in zip(gradient.values(), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.kind)
def test_prox_is_stationary(operator: Operator) -> None:
    quadratic, theta, step = Quadratic(operator, vector(2)), vector(1), 3.7
    x = quadratic.prox(theta, step)
    stationary = parameters.axpy(step, quadratic.gradient(x), parameters.subtract(x, theta))
    assert float(parameters.norm(stationary)) < 1e-12


@settings(deadline=None, max_examples=30)
@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5), zeros=st.booleans())
def test_merged_diagonals_have_the_same_gradient_and_the_same_value(seeds: list[int], zeros: bool) -> None:
    terms = []
    for seed in seeds:
        values = {name: v.abs() for name, v in vector(seed).items()}
        if zeros:
            values["b"] = torch.zeros_like(values["b"])
        terms.append(Quadratic(Diagonal(values), vector(seed + 1)))
    (merged,) = merge(terms)
    theta = vector(-1)
    torch.testing.assert_close(merged.value(theta), torch.stack([t.value(theta) for t in terms]).sum())
    gradients = [term.gradient(theta) for term in terms]
    for name, got in merged.gradient(theta).items():
        torch.testing.assert_close(got, torch.stack([gradient[name] for gradient in gradients]).sum(0))
    if zeros:
        assert torch.equal(merged.anchor["b"], terms[-1].anchor["b"])


def test_where_the_importance_is_denormal_the_newest_anchor_stands() -> None:
    tiny = torch.full((2,), 1e-45)
    terms = [Quadratic(Diagonal({"a": tiny}), {"a": torch.full((2,), value)}) for value in (1.0, 2.0)]
    (merged,) = merge(terms)
    assert torch.equal(merged.anchor["a"], torch.full((2,), 2.0))


def test_low_rank_terms_are_kept_beside_the_merged_diagonal() -> None:
    identity, diagonal, low_rank = (Quadratic(operator, vector(seed)) for seed, operator in enumerate(operators()))
    merged = merge([low_rank, identity, diagonal])
    assert [term.operator.kind for term in merged] == ["diagonal", "low_rank"]
    assert merged[1] is low_rank
    assert merge([low_rank]) == [low_rank]
    assert merge([]) == []


def test_combining_different_provenance_names_the_field() -> None:
    first, second = (
        Quadratic(Identity(LIKE, provenance=Provenance({"loss_reduction": reduction})), vector(1))
        for reduction in ("mean over elements", "sum over elements")
    )
    low_rank = LowRank({"a": LIKE["a"][None] + 1}, torch.ones(1), second.operator.provenance)
    for terms in ([first, second], [first, Quadratic(low_rank, vector(1))]):
        with pytest.raises(ValueError, match="'loss_reduction' is 'mean over elements'.*'sum over elements'"):
            merge(terms)


def test_merging_keeps_both_records() -> None:
    terms = [Quadratic(Identity(LIKE, provenance=Provenance({}, ({"task": task},))), vector(1)) for task in (1, 2)]
    assert merge(terms)[0].operator.provenance.record == ({"task": 1}, {"task": 2})


def test_a_parameter_that_one_term_knows_keeps_its_importance_and_anchor() -> None:
    narrow, wide = Quadratic(Identity({"a": LIKE["a"]}, 2.0), vector(1)), Quadratic(Identity(LIKE), vector(2))
    for terms in ([narrow, wide], [wide, narrow]):
        (merged,) = merge(terms)
        theta = vector(3)
        torch.testing.assert_close(merged.value(theta), narrow.value(theta) + wide.value(theta))
        torch.testing.assert_close(merged.gradient(theta)["b"], wide.gradient(theta)["b"])


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.kind)
def test_state_survives_a_weights_only_checkpoint_bit_for_bit(operator: Operator) -> None:
    operator.provenance = Provenance({"estimator": "test"}, ({"samples": 3},))
    quadratic = Quadratic(operator, vector(2), constant=1.5)
    buffer = io.BytesIO()
    torch.save(quadratic.state(), buffer)
    buffer.seek(0)
    restored = Quadratic.from_state(torch.load(buffer, weights_only=True))
    theta = vector(1)
    assert torch.equal(restored.value(theta), quadratic.value(theta))
    assert all(torch.equal(restored.gradient(theta)[n], g) for n, g in quadratic.gradient(theta).items())
    assert restored.operator.provenance == operator.provenance


def test_flatten_and_unflatten_are_inverse() -> None:
    flat = torch.arange(10, dtype=torch.float64)
    assert torch.equal(parameters.flatten(parameters.unflatten(flat, LIKE)), flat)
    with pytest.raises(ValueError, match="expected \\(10,\\)"):
        parameters.unflatten(flat[1:], LIKE)


def test_arithmetic_on_different_names_is_refused() -> None:
    with pytest.raises(ValueError, match="the first is 'b'"):
        parameters.inner(LIKE, {"a": LIKE["a"]})
