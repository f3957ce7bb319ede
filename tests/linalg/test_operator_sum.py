from __future__ import annotations

import pytest
import torch

from cl_diffusion.linalg import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    OperatorSum,
    Provenance,
    parameters,
    total,
)
from cl_diffusion.linalg.masked import Masked, released
from cl_diffusion.linalg.storage import operator_from_state
from tests.linalg.laws import check_operator, dense

LIKE = {"weight": torch.zeros(3, 2, dtype=torch.float64), "bias": torch.zeros(3, dtype=torch.float64)}
WEIGHT, BIAS = {"weight": LIKE["weight"]}, {"bias": LIKE["bias"]}
SIZE = 9


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def diagonal(seed: int, like: dict[str, torch.Tensor] = LIKE) -> Diagonal:
    return Diagonal({name: normal(*tensor.shape, seed=seed).abs() for name, tensor in like.items()})


def low_rank(seed: int, like: dict[str, torch.Tensor] = LIKE) -> LowRank:
    vectors = {name: normal(2, *tensor.shape, seed=seed) for name, tensor in like.items()}
    return LowRank(vectors, torch.tensor([1.0, 0.5]))


def kronecker(seed: int) -> Kronecker:
    a, b = normal(3, 3, seed=seed), normal(3, 3, seed=seed + 1)
    return Kronecker.from_factors("weight", "bias", (3, 2), a @ a.T, b @ b.T)


def embedded(operator: Operator) -> torch.Tensor:
    """The dense matrix on all of LIKE, zero where the operator does not act."""
    columns = []
    for row in torch.eye(SIZE, dtype=torch.float64):
        product = operator @ parameters.unflatten(row, LIKE)
        columns.append(parameters.flatten({name: product.get(name, zero) for name, zero in LIKE.items()}))
    return torch.stack(columns, dim=1)


def check_open_sum(operator: Operator, expected: torch.Tensor) -> None:
    """Everything but the resolvent, held to the dense matrix."""
    assert set(operator.names) == set(LIKE)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(embedded(operator), expected, **close)
    torch.testing.assert_close(embedded(operator.scaled(2.5)), 2.5 * expected, **close)
    flat = normal(SIZE, seed=7)
    torch.testing.assert_close(operator.quadratic(parameters.unflatten(flat, LIKE)), flat @ expected @ flat, **close)
    entries = parameters.flatten(parameters.select(operator.diagonal(), LIKE))
    torch.testing.assert_close(entries, expected.diagonal(), **close)
    torch.testing.assert_close(operator.trace(), expected.trace(), **close)


def test_diagonals_and_identities_sum_to_a_diagonal() -> None:
    terms = [diagonal(0), Identity(LIKE, 0.7), diagonal(1)]
    result = total(terms)
    assert isinstance(result, Diagonal)
    check_operator(result, sum(dense(term, LIKE) for term in terms), LIKE)


def test_low_ranks_sum_to_a_low_rank_though_their_columns_overlap() -> None:
    terms = [low_rank(0), low_rank(1), low_rank(0).scaled(3.0)]
    result = total(terms)
    assert isinstance(result, LowRank)
    assert result.rank == 4
    check_operator(result, sum(dense(term, LIKE) for term in terms), LIKE)


@pytest.mark.parametrize(
    "terms",
    [
        [diagonal(0), low_rank(1)],
        [Identity(LIKE), low_rank(1), low_rank(2)],
        [kronecker(0), kronecker(5)],
        [kronecker(0), diagonal(1), low_rank(2)],
        [BlockDiagonal([diagonal(0, WEIGHT), low_rank(1, BIAS)]), Identity(LIKE)],
        [OperatorSum([diagonal(0), low_rank(1)]), low_rank(2)],
    ],
    ids=lambda terms: " + ".join(term.kind for term in terms),
)
def test_a_mixed_sum_is_the_sum_of_the_matrices(terms: list[Operator]) -> None:
    result = total(terms)
    assert isinstance(result, OperatorSum)
    check_open_sum(result, sum(embedded(term) for term in terms))


@pytest.mark.parametrize(
    "terms",
    [
        [diagonal(0, WEIGHT), diagonal(1)],
        [diagonal(0, BIAS), Identity(WEIGHT)],
        [low_rank(0, WEIGHT), low_rank(1)],
        [low_rank(0, BIAS), low_rank(1, WEIGHT)],
        [low_rank(0), diagonal(1, BIAS), Identity(WEIGHT)],
    ],
    ids=lambda terms: " + ".join(f"{term.kind} of {len(term.names)}" for term in terms),
)
def test_a_parameter_that_only_some_terms_know_takes_part_in_those(terms: list[Operator]) -> None:
    check_open_sum(total(terms), sum(embedded(term) for term in terms))
    check_open_sum(OperatorSum(terms), sum(embedded(term) for term in terms))


def test_a_sum_of_one_is_that_one() -> None:
    for operator in (diagonal(0), low_rank(1)):
        check_operator(total([operator]), dense(operator, LIKE), LIKE)
    check_open_sum(total([kronecker(2)]), dense(kronecker(2), LIKE))


def test_the_resolvent_of_a_mixed_sum_is_refused_and_the_kinds_are_named() -> None:
    mixed = total([diagonal(0), low_rank(1)])
    with pytest.raises(NotImplementedError, match="2 operators \\(diagonal, low_rank\\)"):
        mixed.resolvent(LIKE, 0.3)
    with pytest.raises(ValueError, match="step="):
        mixed.resolvent(LIKE, -1.0)


def test_a_negative_factor_and_an_empty_sum_are_refused() -> None:
    with pytest.raises(ValueError, match="factor="):
        OperatorSum([diagonal(0)]).scaled(-1.0)
    with pytest.raises(ValueError, match="parts="):
        OperatorSum([])
    with pytest.raises(ValueError, match="operators="):
        total([])


FAMILIES = [[diagonal(0), diagonal(1)], [low_rank(0), low_rank(1)], [diagonal(0), low_rank(1)]]


@pytest.mark.parametrize("terms", FAMILIES, ids=["diagonal", "low rank", "mixed"])
def test_a_sum_keeps_the_common_identity_and_every_record(terms: list[Operator]) -> None:
    for task, term in enumerate(terms):
        term.provenance = Provenance({"loss_reduction": "mean over elements"}, ({"task": task},))
    result = total(terms)
    expected = Provenance({"loss_reduction": "mean over elements"}, ({"task": 0}, {"task": 1}))
    assert result.provenance == expected
    assert result.scaled(2.0).provenance == expected


@pytest.mark.parametrize("terms", FAMILIES, ids=["diagonal", "low rank", "mixed"])
def test_estimates_of_different_things_sum_only_under_a_provenance_that_is_given(terms: list[Operator]) -> None:
    for reduction, term in zip(("mean over elements", "sum over elements"), terms, strict=True):
        term.provenance = Provenance({"estimator": "one", "loss_reduction": reduction})
    with pytest.raises(ValueError, match="'loss_reduction' is 'mean over elements'.*'sum over elements'"):
        total(terms)
    given = Provenance({"estimator": "both"})
    assert total(terms, given).provenance == given


def test_what_is_let_go_has_neither_row_nor_column_and_the_rest_is_as_it_was() -> None:
    like = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    keep = {"a": torch.tensor([[True, False, True], [True, True, True]])}
    mask = torch.cat([keep["a"].flatten(), torch.ones(2, dtype=torch.bool)]).double()
    generator = torch.Generator().manual_seed(0)
    columns = {name: torch.randn(2, *t.shape, dtype=torch.float64, generator=generator) for name, t in like.items()}
    low_rank = LowRank(columns, torch.tensor([2.0, 1.0], dtype=torch.float64))
    for operator in (Diagonal({n: t + 2 for n, t in like.items()}), Identity(like, 3.0), low_rank):
        expected = mask[:, None] * dense(operator, like) * mask
        check_operator(released(operator, keep), expected, like)
    summed = OperatorSum([low_rank, Diagonal({n: t + 1 for n, t in like.items()})])
    for operator in (Masked([summed], keep), released(summed, keep), released(Masked([low_rank], {}), keep)):
        inner = low_rank if operator.kind == "masked" and not isinstance(operator.operator, OperatorSum) else summed
        expected = mask[:, None] * dense(inner, like) * mask
        torch.testing.assert_close(dense(operator, like), expected)
        flat = torch.randn(8, dtype=torch.float64, generator=generator)
        vector = parameters.unflatten(flat, like)
        torch.testing.assert_close(operator.quadratic(vector), flat @ expected @ flat)
        torch.testing.assert_close(operator.trace(), expected.trace())
        torch.testing.assert_close(dense(operator.scaled(2.0), like), 2 * expected)
        torch.testing.assert_close(dense(operator_from_state(operator.state()), like), expected)
        with pytest.raises(NotImplementedError):
            operator.resolvent(vector, 0.1)
    twice = released(Masked([low_rank], keep), {"b": torch.tensor([False, True])})
    both = torch.cat([keep["a"].flatten(), torch.tensor([False, True])]).double()
    torch.testing.assert_close(dense(twice, like), both[:, None] * dense(low_rank, like) * both)
    assert released(low_rank, {"c": torch.tensor([False])}) is low_rank
