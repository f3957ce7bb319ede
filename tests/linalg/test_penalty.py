from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cl_diffusion.linalg import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Memory,
    Operator,
    OperatorSum,
    Penalty,
    Quadratic,
    add_gradients_,
    merge,
    parameters,
    sweep,
    truncated,
)
from tests.linalg.laws import dense

LIKE = {
    "a.weight": torch.zeros(4, 3, dtype=torch.float64),
    "a.bias": torch.zeros(4, dtype=torch.float64),
    "b": torch.zeros(2, 3, 2, 2, dtype=torch.float64),
}


def vector(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(t.shape, dtype=torch.float64, generator=generator)).to(dtype)
        for name, t in LIKE.items()
    }


def diagonal(seed: int, dtype: torch.dtype = torch.float64) -> Diagonal:
    return Diagonal({name: v.abs() for name, v in vector(seed, dtype=dtype).items()})


def low_rank(seed: int, dtype: torch.dtype = torch.float64) -> LowRank:
    columns = [vector(100 * seed + j, dtype=dtype) for j in range(2)]
    return LowRank({n: torch.stack([c[n] for c in columns]) for n in LIKE}, torch.tensor([1.0, 3.0]))


def kronecker(seed: int, dtype: torch.dtype = torch.float64) -> BlockDiagonal:
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(n, n, dtype=torch.float64, generator=generator) for n in (4, 4)]
    a, b = (root @ root.T for root in roots)
    layer = Kronecker.from_factors("a.weight", "a.bias", (4, 3), a.to(dtype), b.to(dtype))
    return BlockDiagonal([layer, Diagonal({"b": vector(seed, dtype=dtype)["b"].abs()})])


OPERATORS: dict[str, Callable[..., Operator]] = {
    "identity": lambda seed, dtype=torch.float64: Identity(vector(seed, dtype=dtype), 0.5 + seed),
    "diagonal": diagonal,
    "low rank": low_rank,
    "kronecker": kronecker,
}


def by_hand(terms: list[Quadratic], theta: dict[str, Tensor]) -> Tensor:
    """The gradient of the sum, by dense matrices in float64."""
    total = torch.zeros(sum(t.numel() for t in LIKE.values()), dtype=torch.float64)
    for term in terms:
        moved = {name: theta[name].double() - term.anchor[name].double() for name in LIKE}
        total += dense(term.operator, LIKE) @ parameters.flatten(moved)
    return total


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("memory", ["merged", "separate"])
def test_the_gradient_of_many_tasks_is_the_sum_of_theirs_whatever_is_merged(kind: str, memory: Memory) -> None:
    penalty = Penalty(memory)
    terms = [Quadratic(OPERATORS[kind](seed), vector(seed + 50)) for seed in range(4)]
    for term in terms:
        penalty.remember(term)
    theta, gradients = vector(9), vector(10)
    before = parameters.flatten(gradients).clone()
    add_gradients_(penalty.working(theta), gradients, theta, 2.5)
    torch.testing.assert_close(parameters.flatten(gradients), before + 2.5 * by_hand(terms, theta))
    value = torch.stack([term.value(theta) for term in terms]).sum()
    torch.testing.assert_close(torch.stack([term.value(theta) for term in penalty.terms]).sum(), value)
    merges = kind in ("identity", "diagonal") or (memory == "merged" and kind == "low rank")
    assert len(penalty.terms) == (1 if merges else 4)


def test_terms_of_every_kind_together() -> None:
    terms = [Quadratic(make(seed), vector(seed + 50)) for seed, make in enumerate(OPERATORS.values())]
    theta, gradients = vector(9), parameters.scale(LIKE, 0.0)
    add_gradients_(terms, gradients, theta, 1.0)
    torch.testing.assert_close(parameters.flatten(gradients), by_hand(terms, theta))


@pytest.mark.parametrize("kind", ["diagonal", "low rank"])
def test_pieces_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of large tensors, groups of small ones, a tensor that is not contiguous, names without a gradient."""
    terms = [Quadratic(OPERATORS[kind](seed), vector(seed + 50)) for seed in range(2)]
    theta = vector(9)
    theta["b"] = theta["b"].to(memory_format=torch.channels_last)
    wanted = ["a.weight", "b"]
    for piece in (2, 5, 10_000):
        monkeypatch.setattr(sweep, "PIECE", piece)
        gradients = {name: torch.zeros_like(theta[name]) for name in wanted}
        add_gradients_(terms, gradients, theta, 1.0)
        expected = parameters.unflatten(by_hand(terms, theta), LIKE)
        for name in wanted:
            torch.testing.assert_close(gradients[name], expected[name])


@pytest.mark.parametrize("kind", ["diagonal", "low rank"])
def test_twenty_tasks_in_single_precision_are_merged_to_one_part_in_a_million(kind: str) -> None:
    penalty = Penalty()
    terms = [
        Quadratic(OPERATORS[kind](seed, torch.float32), vector(seed + 50, dtype=torch.float32)) for seed in range(20)
    ]
    for term in terms:
        penalty.remember(term)
    theta = vector(9, dtype=torch.float32)
    gradients = {name: torch.zeros_like(t) for name, t in theta.items()}
    add_gradients_(penalty.working(theta), gradients, theta, 1.0)
    expected = by_hand(terms, theta) if kind == "diagonal" else sum_of_gradients(terms, theta)
    error = (parameters.flatten(gradients).double() - expected).norm() / expected.norm()
    assert error < 1e-6


def sum_of_gradients(terms: list[Quadratic], theta: dict[str, Tensor]) -> Tensor:
    """In float64, of low-rank terms in single precision."""
    total = torch.zeros(sum(t.numel() for t in LIKE.values()), dtype=torch.float64)
    for term in terms:
        assert isinstance(term.operator, LowRank)
        u = torch.cat([columns.flatten(1).double() for columns in term.operator.vectors.values()], dim=1)
        moved = parameters.flatten({n: theta[n].double() - term.anchor[n].double() for n in LIKE})
        total += u.T @ (term.operator.values * (u @ moved))
    return total


def test_a_merged_diagonal_is_kept_in_float64_and_read_in_single_precision() -> None:
    penalty = Penalty()
    for seed in range(3):
        penalty.remember(Quadratic(diagonal(seed, torch.float32), vector(seed, dtype=torch.float32)))
    (term,) = penalty.terms
    assert isinstance(term.operator, Diagonal)
    assert {t.dtype for t in [*term.anchor.values(), *term.operator.values.values()]} == {torch.float64}
    for dtype in (torch.float32, torch.bfloat16):
        (read,) = penalty.working(vector(9, dtype=dtype))
        assert isinstance(read.operator, Diagonal)
        assert {t.dtype for t in [*read.anchor.values(), *read.operator.values.values()]} == {torch.float32}


def test_online_is_the_discounted_sum_at_the_newest_anchor() -> None:
    penalty, gamma = Penalty("online", gamma=0.7), 0.7
    terms = [Quadratic(diagonal(seed), vector(seed + 50)) for seed in range(3)]
    for term in terms:
        penalty.remember(term)
    (kept,) = penalty.terms
    weights = [gamma**3, gamma**2, gamma]  # gamma F*_3, F*_k = gamma F*_{k-1} + F_k
    expected = sum(w * dense(t.operator, LIKE) for w, t in zip(weights, terms, strict=True))
    torch.testing.assert_close(dense(kept.operator, LIKE), expected)
    assert all(torch.equal(kept.anchor[name], terms[-1].anchor[name]) for name in LIKE)


def test_the_rank_is_cut_to_the_largest_eigenvalues_and_the_dropped_trace_is_told() -> None:
    penalty = Penalty(max_rank=3)
    terms = [Quadratic(low_rank(seed), vector(seed + 50)) for seed in range(2)]
    assert penalty.remember(terms[0]) == 0
    dropped = penalty.remember(terms[1])
    (whole,) = merge(terms)
    assert isinstance(whole.operator, LowRank)
    (kept,) = penalty.terms
    assert isinstance(kept.operator, LowRank)
    torch.testing.assert_close(kept.operator.values, whole.operator.values[:3])
    assert dropped == pytest.approx(float(whole.operator.values[3]), rel=1e-9)


def test_where_the_rank_was_cut_nothing_pulls() -> None:
    """The slope of a cut term lies in what is left, so the penalty has a minimum."""
    (whole,) = merge([Quadratic(low_rank(seed), vector(seed + 50)) for seed in range(2)])
    cut, _ = truncated(whole, 1)
    assert isinstance(cut.operator, LowRank)
    far = cut.prox(vector(9), 1e12)
    assert float(parameters.norm(cut.gradient(far))) < 1e-9


@pytest.mark.parametrize("kind", ["identity", "diagonal", "low rank"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_joint_proximal_step_is_stationary_with_a_step_for_each_parameter(kind: str, tasks: int) -> None:
    terms = [Quadratic(OPERATORS[kind](seed), vector(seed + 50)) for seed in range(tasks)]
    penalty = Penalty()
    for term in terms:
        penalty.remember(term)
    assert penalty.closed
    theta, steps = vector(9), {"a.weight": 0.7, "b": 30.0}  # the bias has step 0
    x = penalty.terms[0].prox(theta, steps)
    gradient = parameters.unflatten(by_hand(terms, x), LIKE)
    for name in LIKE:
        torch.testing.assert_close(x[name] + steps.get(name, 0.0) * gradient[name], theta[name])


def test_one_anchor_after_the_other_is_not_the_joint_solution() -> None:
    terms = [Quadratic(diagonal(seed), vector(seed + 50)) for seed in range(2)]
    (merged,) = merge(terms)
    joint, theta = merged.prox(vector(9), 1.0), vector(9)
    for term in terms:
        theta = term.prox(theta, 1.0)
    assert float(parameters.norm(parameters.subtract(joint, theta)) / parameters.norm(joint)) > 0.1


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_largest_eigenvalue_is_that_of_the_dense_matrix(kind: str) -> None:
    operator = OPERATORS[kind](1)
    expected = float(torch.linalg.eigvalsh(dense(operator, LIKE)).max())
    assert operator.largest_eigenvalue() == pytest.approx(expected, rel=1e-9)
    assert OperatorSum([operator, operator]).largest_eigenvalue() <= 2 * expected


def test_the_curvature_of_a_restriction_is_a_lower_bound() -> None:
    penalty = Penalty("separate")
    for seed in range(2):
        penalty.remember(Quadratic(low_rank(seed), vector(seed)))
    matrix = sum(dense(term.operator, LIKE) for term in penalty.terms)
    assert isinstance(matrix, Tensor)
    places = parameters.unflatten(torch.arange(len(matrix), dtype=torch.float64), LIKE)
    for names in (frozenset(LIKE), frozenset(["b"]), frozenset(["a.bias", "b"])):
        rows = parameters.flatten(parameters.select(places, sorted(names))).long()
        exact = float(torch.linalg.eigvalsh(matrix[rows][:, rows]).max())
        assert 0 < penalty.curvature(names) <= exact * (1 + 1e-12)
    assert penalty.curvature(frozenset(["unknown"])) == 0


def test_a_kronecker_layer_with_two_steps_and_sums_of_them_have_no_closed_resolvent() -> None:
    with pytest.raises(NotImplementedError, match="different steps"):
        kronecker(1).resolvent(vector(1), {"a.weight": 1.0, "a.bias": 2.0, "b": 1.0})
    penalty = Penalty("online")
    for seed in range(2):
        penalty.remember(Quadratic(kronecker(seed), vector(seed)))
    assert not penalty.closed


@pytest.mark.parametrize("memory", ["merged", "separate", "online"])
def test_a_penalty_survives_a_weights_only_checkpoint_bit_for_bit(memory: Memory) -> None:
    penalty = Penalty(memory)
    for seed in range(3):
        penalty.remember(Quadratic(low_rank(seed), vector(seed)))
    buffer = io.BytesIO()
    torch.save(penalty.state(), buffer)
    buffer.seek(0)
    restored = Penalty(memory)
    restored.load_state(torch.load(buffer, weights_only=True))
    theta = vector(9)
    for mine, theirs in zip(penalty.terms, restored.terms, strict=True):
        assert all(torch.equal(theirs.gradient(theta)[n], g) for n, g in mine.gradient(theta).items())
        assert torch.equal(mine.value(theta), theirs.value(theta))
    other: Memory = "online" if memory == "merged" else "merged"
    with pytest.raises(ValueError, match="memory=.*was made with memory"):
        Penalty(other).load_state(penalty.state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "all"}, "memory='all'; expected one of 'merged', 'separate', 'online'"),
        ({"gamma": 0.5}, "gamma=0.5 is of memory='online' alone, and memory='merged'"),
        ({"memory": "online", "gamma": 1.5}, "gamma=1.5"),
        ({"max_rank": 0}, "max_rank=0; expected a positive"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Penalty(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "tasks"), [("low rank", 2), ("kronecker", 1)])
def test_autocast_around_a_step_changes_nothing(kind: str, tasks: int) -> None:
    """A manual optimisation steps inside the forward's autocast."""
    penalty = Penalty()
    for seed in range(tasks):
        penalty.remember(Quadratic(OPERATORS[kind](seed, torch.float32), vector(seed + 50, dtype=torch.float32)))
    found = []
    for enabled in (False, True):
        theta = vector(9, dtype=torch.float32)
        gradients = {name: torch.zeros_like(t) for name, t in theta.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalty.add_gradient_(gradients, theta, 2.0)
            penalty.solve_(theta, dict.fromkeys(LIKE, 0.5))
        found.append(torch.cat([parameters.flatten(gradients), parameters.flatten(theta)]))
    assert torch.equal(*found)


def test_solving_moves_those_with_a_step_and_no_others() -> None:
    penalty = Penalty()
    penalty.remember(Quadratic(diagonal(1), vector(2)))
    theta = vector(9)
    penalty.solve_(theta, {"b": 1e12})
    assert torch.equal(theta["a.weight"], vector(9)["a.weight"])
    torch.testing.assert_close(theta["b"], vector(2)["b"])


def test_directions_that_are_rounding_do_not_move_the_weights() -> None:
    columns = {"a": torch.eye(3)[:2]}
    operator = LowRank(columns, torch.tensor([1.0, 1e-9]))
    moved = operator.damped_inverse({"a": torch.tensor([1.0, 1.0, 1.0])}, 1e12)["a"]
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.0, 0.0]))


def test_what_is_known_of_the_curvature_follows_the_terms() -> None:
    penalty = Penalty()
    seen = []
    for seed in range(2):
        penalty.remember(Quadratic(Identity(LIKE), vector(seed)))
        seen.append(penalty.curvature(penalty.names))
    assert seen == [1.0, 2.0]
