from __future__ import annotations

import pytest
import torch

from cl_diffusion.linalg import Diagonal, Identity, LowRank, parameters
from tests.linalg.laws import check_operator, dense

LIKE = {"weight": torch.zeros(3, 2, dtype=torch.float64), "bias": torch.zeros(4, dtype=torch.float64)}
SIZE = 10


def random_vectors(rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rank, *tensor.shape, dtype=torch.float64, generator=generator)
        for name, tensor in LIKE.items()
    }


def columns(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.flatten(1) for v in vectors.values()], dim=1).T


def test_identity_is_its_dense_matrix() -> None:
    check_operator(Identity(LIKE, scale=0.7), 0.7 * torch.eye(SIZE, dtype=torch.float64), LIKE)


def test_diagonal_is_its_dense_matrix() -> None:
    values = parameters.unflatten(torch.linspace(0, 3, SIZE, dtype=torch.float64), LIKE)
    check_operator(Diagonal(values), torch.linspace(0, 3, SIZE, dtype=torch.float64).diag(), LIKE)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_is_its_dense_matrix_whatever_the_columns(rank: int) -> None:
    vectors = random_vectors(rank)
    values = torch.rand(rank, dtype=torch.float64) + 0.1
    v = columns(vectors)
    check_operator(LowRank(vectors, values), v * values @ v.T, LIKE)


def test_low_rank_with_dependent_columns_drops_the_dependence_and_keeps_the_matrix() -> None:
    one = random_vectors(1)
    vectors = {name: torch.cat([v, -2 * v]) for name, v in one.items()}
    v = columns(vectors)
    operator = LowRank(vectors, torch.tensor([1.0, 0.5]))
    assert operator.rank == 1
    check_operator(operator, v * torch.tensor([1.0, 0.5], dtype=torch.float64) @ v.T, LIKE)


def test_low_rank_columns_are_orthonormal_and_survive_a_second_construction_bit_for_bit() -> None:
    first = LowRank(random_vectors(4), torch.rand(4))
    u = columns(first.vectors)
    torch.testing.assert_close(u.T @ u, torch.eye(4, dtype=torch.float64))
    second = LowRank(first.vectors, first.values)
    assert all(torch.equal(first.vectors[name], second.vectors[name]) for name in LIKE)
    assert torch.equal(first.values, second.values)


def test_low_rank_in_float32_holds_its_matrix_to_float32() -> None:
    vectors = {name: v.float() for name, v in random_vectors(3).items()}
    v = columns(vectors).double()
    like = {name: tensor.float() for name, tensor in LIKE.items()}
    operator = LowRank(vectors, torch.ones(3))
    matrix = torch.stack(
        [parameters.flatten(operator @ parameters.unflatten(row, like)) for row in torch.eye(SIZE)], dim=1
    )
    torch.testing.assert_close(matrix.double(), v @ v.T, rtol=1e-5, atol=1e-5)


def test_a_vector_may_hold_more_parameters_and_must_not_hold_fewer() -> None:
    operator = Diagonal(parameters.unflatten(torch.ones(SIZE, dtype=torch.float64), LIKE))
    vector = {"head": torch.ones(2, dtype=torch.float64), **LIKE}
    assert (operator @ vector).keys() == LIKE.keys()
    with pytest.raises(ValueError, match="'bias'"):
        operator.quadratic({"weight": LIKE["weight"]})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_what_is_not_positive_semi_definite_is_refused(bad: float) -> None:
    values = {"weight": torch.tensor([1.0, bad])}
    with pytest.raises(ValueError, match="values\\['weight'\\].*finite and >= 0"):
        Diagonal(values)
    with pytest.raises(ValueError, match="values=.*finite and >= 0"):
        LowRank({"weight": torch.ones(1, 2)}, torch.tensor([bad]))
    with pytest.raises(ValueError, match="factor="):
        Identity(LIKE, scale=bad)
    with pytest.raises(ValueError, match="step="):
        Identity(LIKE).resolvent(LIKE, bad)


def test_low_rank_refuses_columns_that_do_not_match_the_values() -> None:
    with pytest.raises(ValueError, match="vectors\\['weight'\\].*k=3"):
        LowRank({"weight": torch.ones(2, 5)}, torch.ones(3))


def test_dense_is_not_blind() -> None:
    with pytest.raises(AssertionError):
        check_operator(Identity(LIKE), 1.001 * torch.eye(SIZE, dtype=torch.float64), LIKE)
    assert dense(Identity(LIKE), LIKE).shape == (SIZE, SIZE)
