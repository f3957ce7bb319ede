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
    Provenance,
    operator_from_state,
    parameters,
    total,
)
from tests.linalg.laws import check_operator, dense

LIKE = {
    "weight": torch.zeros(3, 2, dtype=torch.float64),
    "bias": torch.zeros(3, dtype=torch.float64),
    "gain": torch.zeros((), dtype=torch.float64),
}
SIZE = 10


def random_vectors(rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rank, *tensor.shape, dtype=torch.float64, generator=generator)
        for name, tensor in LIKE.items()
    }


def columns(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameters.flat_rows(v) for v in vectors.values()], dim=1).T


def dense_in_float32(operator: Operator, like: dict[str, torch.Tensor]) -> torch.Tensor:
    rows = torch.eye(sum(tensor.numel() for tensor in like.values()))
    return torch.stack([parameters.flatten(operator @ parameters.unflatten(row, like)) for row in rows], dim=1)


def layer(*shape: int, bias: bool) -> dict[str, torch.Tensor]:
    weight = torch.zeros(shape, dtype=torch.float64)
    return {"weight": weight, "bias": weight.new_zeros(shape[0])} if bias else {"weight": weight}


LAYERS = [layer(*shape, bias=bias) for shape in ((3, 4), (4, 2, 3, 3), (1, 1)) for bias in (False, True)]
LAYER_IDS = [f"{tuple(like['weight'].shape)} {'with' if 'bias' in like else 'without'} bias" for like in LAYERS]


def factor(size: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank, dtype=torch.float64, generator=generator)
    return root @ root.T


def factors(like: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs = len(like["weight"]), like["weight"][0].numel() + len(like) - 1
    return factor(inputs, inputs, seed=1), factor(outputs, outputs, seed=2)


def weight_then_bias(matrix: torch.Tensor, like: dict[str, torch.Tensor]) -> torch.Tensor:
    """From ``[W | b].flatten()`` to the order of the parameters, rows and columns."""
    places = torch.arange(len(matrix)).view(len(like["weight"]), -1)
    order = torch.cat([places[:, :-1].flatten(), places[:, -1]]) if "bias" in like else places.flatten()
    return matrix[order][:, order]


def kronecker(like: dict[str, torch.Tensor]) -> Kronecker:
    return Kronecker.from_factors("weight", "bias" if "bias" in like else None, like["weight"].shape, *factors(like))


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
    matrix = dense_in_float32(LowRank(vectors, torch.ones(3)), LIKE)
    torch.testing.assert_close(matrix.double(), v @ v.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("like", LAYERS, ids=LAYER_IDS)
def test_kronecker_of_two_factors_is_their_product_outputs_first(like: dict[str, torch.Tensor]) -> None:
    a, b = factors(like)
    check_operator(kronecker(like), weight_then_bias(torch.kron(b, a), like), like)


@pytest.mark.parametrize("like", LAYERS, ids=LAYER_IDS)
def test_kronecker_with_values_of_its_own_keeps_the_basis(like: dict[str, torch.Tensor]) -> None:
    plain = kronecker(like)
    values = torch.rand(plain.values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values[0, 0] = 0.0
    basis = torch.kron(plain.outputs, plain.inputs)
    corrected = Kronecker("weight", plain.bias, plain.shape, plain.inputs, plain.outputs, values)
    check_operator(corrected, weight_then_bias(basis * values.flatten() @ basis.T, like), like)


def test_kronecker_of_singular_factors_forgives_eigenvalues_that_rounding_made_negative() -> None:
    like = layer(6, 9, bias=True)
    a, b = factor(10, 3, seed=1), factor(6, 2, seed=2)
    assert torch.linalg.eigvalsh(a).min() < 0
    operator = Kronecker.from_factors("weight", "bias", (6, 9), a, b)
    check_operator(operator, weight_then_bias(torch.kron(b, a), like), like)


def test_kronecker_of_float32_factors_is_float32_though_decomposed_in_float64() -> None:
    like = layer(3, 4, bias=True)
    a, b = (matrix.float() for matrix in factors(like))
    operator = Kronecker.from_factors("weight", "bias", (3, 4), a, b)
    exact = Kronecker.from_factors("weight", "bias", (3, 4), a.double(), b.double())
    for name in ("inputs", "outputs", "values"):
        assert torch.equal(getattr(operator, name), getattr(exact, name).float())
    matrix = dense_in_float32(operator, like)
    torch.testing.assert_close(matrix, weight_then_bias(torch.kron(b, a), like), rtol=1e-4, atol=1e-4)


def test_block_diagonal_is_the_direct_sum_of_its_parts() -> None:
    linear, norm = layer(3, 4, bias=True), {"norm": torch.zeros(5, dtype=torch.float64)}
    values = torch.linspace(0, 2, 5, dtype=torch.float64)
    operator = BlockDiagonal([kronecker(linear), Diagonal({"norm": values})])
    expected = torch.block_diag(dense(kronecker(linear), linear), values.diag())
    check_operator(operator, expected, {**linear, **norm})


def test_a_layer_finds_its_parameters_by_name_among_others() -> None:
    like = layer(3, 4, bias=True)
    operator = BlockDiagonal([kronecker(like), Identity({"norm": torch.zeros(2)})])
    vector = {"weight": factor(4, 4, seed=5)[:3], "bias": torch.ones(3, dtype=torch.float64), "norm": torch.ones(2)}
    shuffled = {"head": torch.ones(7), **{name: vector[name] for name in ("norm", "bias", "weight")}}
    for got in (operator @ shuffled, operator.resolvent(shuffled, 0.0)):
        assert tuple(got) == operator.names == ("weight", "bias", "norm")
    assert all(torch.equal((operator @ shuffled)[name], product) for name, product in (operator @ vector).items())
    with pytest.raises(ValueError, match="'bias'"):
        operator @ {"weight": vector["weight"], "norm": vector["norm"]}


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


@pytest.mark.parametrize("wrong", ["inputs", "outputs", "values"])
def test_kronecker_refuses_shapes_that_do_not_fit_the_layer(wrong: str) -> None:
    tensors = {"inputs": torch.eye(5), "outputs": torch.eye(3), "values": torch.ones(3, 5)}
    tensors[wrong] = tensors[wrong][:, 1:]
    with pytest.raises(ValueError, match=r"\(3, 4\) with a bias takes \(5, 5\), \(3, 3\) and \(3, 5\)"):
        Kronecker("weight", "bias", (3, 4), **tensors)


@pytest.mark.parametrize("bad", [-1e-6, float("nan"), float("inf")])
def test_kronecker_and_blocks_refuse_what_is_not_positive_semi_definite(bad: float) -> None:
    values = torch.tensor([[1.0, bad]])
    with pytest.raises(ValueError, match="values of 'conv'.*(?s:.)*finite and >= 0"):
        Kronecker("conv", None, (1, 2), torch.eye(2), torch.eye(1), values)
    operator = Kronecker("conv", None, (1, 2), torch.eye(2), torch.eye(1), values.new_ones(1, 2))
    for kind in (operator, BlockDiagonal([operator])):
        with pytest.raises(ValueError, match="factor="):
            kind.scaled(bad)
        with pytest.raises(ValueError, match="step="):
            kind.resolvent({"conv": torch.ones(1, 2)}, bad)


def test_a_multiple_is_an_estimate_of_the_same_thing() -> None:
    like = layer(3, 4, bias=True)
    for operator in (kronecker(like), BlockDiagonal([kronecker(like)]), Identity(like), Diagonal(like)):
        operator.provenance = Provenance({"estimator": "test"}, ({"samples": 3},))
        assert operator.scaled(2.0).provenance == operator.provenance


def test_block_diagonal_refuses_parts_that_share_a_parameter_and_names_it() -> None:
    parts = [Identity({"a": torch.zeros(2), "b": torch.zeros(2)}), Identity({"b": torch.zeros(2), "c": torch.zeros(2)})]
    with pytest.raises(ValueError, match=r"share the parameters \['b'\]"):
        BlockDiagonal(parts)
    with pytest.raises(ValueError, match="parts="):
        BlockDiagonal([])


def test_dense_is_not_blind() -> None:
    with pytest.raises(AssertionError):
        check_operator(Identity(LIKE), 1.001 * torch.eye(SIZE, dtype=torch.float64), LIKE)
    assert dense(Identity(LIKE), LIKE).shape == (SIZE, SIZE)


def test_nearly_dependent_columns_survive_a_second_construction_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, 10, dtype=torch.float64, generator=generator)
    first = total([LowRank({"a": x[None]}, torch.ones(1)) for x in (v, v + 1e-3 * w)])
    assert torch.equal(operator_from_state(first.state()).vectors["a"], first.vectors["a"])


def test_columns_in_half_precision_that_are_not_orthonormal_are_told_from_those_that_are() -> None:
    """At a cosine of .2, below what bfloat16 rounds, the eigenvalues are 1.2 and 0.8."""
    across = torch.zeros(2, 10, dtype=torch.bfloat16)
    across[:, 0] = torch.tensor([1.0, 0.2])
    across[1, 1] = (1 - 0.2**2) ** 0.5
    operator = LowRank({"w": across}, torch.ones(2))
    expected = across.float().T @ across.float()
    found = dense_in_float32(operator, {"w": torch.zeros(10)})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    vector = {"w": torch.arange(10, dtype=torch.bfloat16)}
    solved = operator.resolvent(vector, 3.0)["w"].float()
    torch.testing.assert_close(solved + 3.0 * expected @ solved, vector["w"].float(), rtol=1e-5, atol=1e-4)
