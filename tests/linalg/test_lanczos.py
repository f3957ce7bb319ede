from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cl_diffusion.linalg.krylov import Krylov
from cl_diffusion.linalg.lanczos import Eigenpairs, lanczos_eigenpairs, lanczos_sqrt, square_root


def normal(*shape: int, seed: int = 100) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(values: Tensor, seed: int = 200) -> Tensor:
    basis, _ = torch.linalg.qr(normal(len(values), len(values), seed=seed))
    return basis * values @ basis.T


def product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda q: (matrix @ q[..., None])[..., 0]


def true_residuals(matrix: Tensor, pairs: Eigenpairs) -> Tensor:
    vectors = pairs.vectors.double()
    return torch.linalg.vector_norm(vectors @ matrix.double().mT - pairs.values[..., None] * vectors, dim=-1)


def check_orthonormal(vectors: Tensor, atol: float = 1e-12) -> None:
    gram = vectors @ vectors.mT
    torch.testing.assert_close(gram, torch.eye(vectors.shape[-2]).to(gram).expand_as(gram), rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dimension", "rank"), [(5, 1), (30, 4), (60, 7)])
def test_the_pairs_are_the_largest_of_the_full_decomposition(dimension: int, rank: int, seed: int) -> None:
    root = normal(dimension, dimension, seed=seed)
    matrix = root @ root.T / dimension
    values, vectors = torch.linalg.eigh(matrix)
    pairs = lanczos_eigenpairs(product(matrix), normal(dimension, seed=seed + 10), rank, tolerance=1e-11, max_steps=60)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, values.flip(0)[:rank], rtol=1e-11, atol=1e-11)
    overlaps = (pairs.vectors * vectors.T.flip(0)[:rank]).sum(1).abs()
    torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=0, atol=1e-9)
    check_orthonormal(pairs.vectors)


@pytest.mark.parametrize("steps", [4, 6, 9, 15])
def test_the_residuals_are_those_of_the_pairs_whether_they_have_converged_or_not(steps: int) -> None:
    matrix = with_spectrum(torch.linspace(0.1, 2, 40, dtype=torch.float64).square())
    pairs = lanczos_eigenpairs(product(matrix), normal(40), 4, max_steps=steps)
    torch.testing.assert_close(pairs.residuals, true_residuals(matrix, pairs), rtol=1e-9, atol=1e-13)
    assert pairs.residuals[-1] > 1e-3
    assert not pairs.converged


def test_a_residual_bounds_the_error_of_its_value() -> None:
    spectrum = 0.8 ** torch.arange(50, dtype=torch.float64)
    pairs = lanczos_eigenpairs(product(with_spectrum(spectrum)), normal(50), 3, max_steps=10)
    nearest = (pairs.values[:, None] - spectrum).abs().amin(1)
    assert (nearest <= pairs.residuals + 1e-13).all()


def test_the_residual_of_a_slightly_asymmetric_product_is_still_the_true_one() -> None:
    matrix = with_spectrum(0.5 ** torch.arange(30, dtype=torch.float64)) + 1e-4 * normal(30, 30, seed=1)
    pairs = lanczos_eigenpairs(product(matrix), normal(30), 3, tolerance=1e-12)
    assert pairs.residuals.min() > 1e-6
    torch.testing.assert_close(pairs.residuals, true_residuals(matrix, pairs), rtol=1e-9, atol=1e-14)


def test_the_basis_stays_orthonormal_and_reproduces_the_product_over_twelve_decades() -> None:
    matrix = with_spectrum(10.0 ** -torch.linspace(0, 12, 40, dtype=torch.float64)) + 1e-5 * normal(40, 40, seed=1)
    krylov = Krylov(product(matrix), normal(40))
    for _ in range(30):
        krylov.extend()
    basis = torch.stack(krylov.basis)
    check_orthonormal(basis)
    q, rest = basis[:30].T, torch.zeros(40, 30, dtype=torch.float64)
    rest[:, -1] = krylov.rests[-1] * basis[30]
    torch.testing.assert_close(matrix @ q, q @ krylov.projected() + rest, rtol=0, atol=1e-14)


def test_every_copy_of_a_multiple_eigenvalue_of_a_scaled_identity_is_found() -> None:
    pairs = lanczos_eigenpairs(lambda q: 2 * q, normal(6), 3)
    torch.testing.assert_close(pairs.values, torch.full((3,), 2.0, dtype=torch.float64))
    check_orthonormal(pairs.vectors)
    assert pairs.residuals.max() < 1e-14
    assert pairs.converged
    assert pairs.steps == 3


def test_where_the_rank_is_less_than_what_is_asked_the_rest_is_zero() -> None:
    matrix = with_spectrum(torch.tensor([3.0, 1.0] + [0.0] * 10, dtype=torch.float64))
    pairs = lanczos_eigenpairs(product(matrix), normal(12), 4)
    torch.testing.assert_close(pairs.values, torch.tensor([3.0, 1, 0, 0], dtype=torch.float64), rtol=0, atol=1e-13)
    assert (pairs.values >= 0).all()
    assert pairs.converged
    assert true_residuals(matrix, pairs).max() < 1e-13
    check_orthonormal(pairs.vectors)


def test_the_zero_matrix_has_zero_pairs() -> None:
    pairs = lanczos_eigenpairs(torch.zeros_like, normal(5), 2)
    assert torch.equal(pairs.values, torch.zeros(2, dtype=torch.float64))
    check_orthonormal(pairs.vectors)
    assert pairs.converged


def test_leading_axes_are_independent_problems_also_where_only_some_are_exhausted() -> None:
    spectra = [torch.linspace(0, 1, 10) ** 4, torch.ones(10), torch.tensor([2.0, 1.0] + [0.0] * 8), torch.zeros(10)]
    matrices = torch.stack([with_spectrum(s.double(), seed) for seed, s in enumerate(spectra)])
    matrices, starts = matrices.view(2, 2, 10, 10), normal(2, 2, 10)
    together = lanczos_eigenpairs(product(matrices), starts, 3, tolerance=1e-12)
    assert together.vectors.shape == (2, 2, 3, 10)
    check_orthonormal(together.vectors)
    assert true_residuals(matrices, together).max() < 1e-11
    for i in range(2):
        for j in range(2):
            alone = lanczos_eigenpairs(product(matrices[i, j]), starts[i, j], 3, tolerance=1e-12)
            torch.testing.assert_close(together.values[i, j], alone.values, rtol=1e-11, atol=1e-11)
            assert together.converged
            assert alone.converged


@pytest.mark.parametrize(("max_steps", "dimension"), [(3, 40), (10, 40), (None, 40), (100, 7)])
def test_products_taken_are_counted_and_never_more_than_allowed(max_steps: int | None, dimension: int) -> None:
    matrix, calls = with_spectrum(torch.linspace(1, 2, dimension, dtype=torch.float64)), []

    def matvec(q: Tensor) -> Tensor:
        calls.append(q)
        return matrix @ q

    pairs = lanczos_eigenpairs(matvec, normal(dimension), 3, tolerance=0.0, max_steps=max_steps)
    assert pairs.steps == len(calls) == min(max_steps or 100, dimension)


def test_it_stops_as_soon_as_the_tolerance_is_met_and_says_so_only_then() -> None:
    matrix = with_spectrum(0.5 ** torch.arange(40, dtype=torch.float64))
    loose, tight = (lanczos_eigenpairs(product(matrix), normal(40), 3, tolerance=t) for t in (1e-2, 1e-8))
    assert 3 <= loose.steps < tight.steps < 32
    for tolerance, pairs in ((1e-2, loose), (1e-8, tight)):
        assert pairs.converged
        assert pairs.residuals.max() <= tolerance * pairs.values[0]
        short = lanczos_eigenpairs(product(matrix), normal(40), 3, tolerance=tolerance, max_steps=pairs.steps - 1)
        assert not short.converged
        assert short.residuals.max() > tolerance * short.values[0]


def test_neither_the_basis_nor_the_pairs_outgrow_the_dimension() -> None:
    matrix = with_spectrum(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    krylov = Krylov(product(matrix), normal(3))
    for _ in range(3):
        krylov.extend()
    assert len(krylov.basis) == 3
    pairs = lanczos_eigenpairs(product(matrix), normal(3), 8)
    torch.testing.assert_close(pairs.values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    check_orthonormal(pairs.vectors)


def test_float32_products_give_pairs_to_float32() -> None:
    spectrum = 0.6 ** torch.arange(30, dtype=torch.float64)
    matrix = with_spectrum(spectrum).float()
    pairs = lanczos_eigenpairs(product(matrix), normal(30).float(), 4, tolerance=1e-5)
    assert (pairs.vectors.dtype, pairs.values.dtype, pairs.residuals.dtype) == (torch.float32, *[torch.float64] * 2)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, spectrum[:4], rtol=0, atol=1e-6)
    assert true_residuals(matrix, pairs).max() < 2e-5
    check_orthonormal(pairs.vectors, atol=1e-5)


def test_the_fresh_directions_leave_the_global_random_state_alone_and_do_not_depend_on_it() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lanczos_eigenpairs(lambda q: q, normal(6), 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(lanczos_eigenpairs(lambda q: q, normal(6), 3).vectors, first.vectors)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_start_that_is_zero_or_not_finite_is_refused_also_as_one_of_several(bad: float) -> None:
    for start in (torch.full((4,), bad), torch.stack([torch.ones(4), torch.full((4,), bad)])):
        with pytest.raises(ValueError, match="start has norm"):
            lanczos_eigenpairs(lambda q: q, start, 2)


@pytest.mark.parametrize(("rank", "max_steps"), [(0, None), (3, 2)])
def test_a_rank_that_the_steps_cannot_reach_is_refused(rank: int, max_steps: int | None) -> None:
    with pytest.raises(ValueError, match=f"rank={rank}, max_steps="):
        lanczos_eigenpairs(lambda q: q, torch.ones(4), rank, max_steps=max_steps)


def test_a_fresh_direction_is_fresh_also_where_the_start_was_drawn_from_seed_zero() -> None:
    start = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = lanczos_eigenpairs(lambda q: 2 * q, start, 3)
    torch.testing.assert_close(pairs.values, torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("spectrum", [[5.0, 5, 1, 1, 1], [3.0, 3, 3, 0, 0, 0, 0, 0]])
def test_convergence_is_not_claimed_where_a_copy_of_a_multiple_eigenvalue_is_missing(spectrum: list[float]) -> None:
    values = torch.tensor(spectrum, dtype=torch.float64)
    start = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rank = int((values == values[0]).sum())
    pairs = lanczos_eigenpairs(lambda q: values * q, start, rank)
    torch.testing.assert_close(pairs.values, values[:rank])


def test_the_residual_counts_a_coupling_that_was_taken_for_exhaustion() -> None:
    matrix = torch.tensor([[1.0, 1e-5], [1e-5, 0.5]])
    pairs = lanczos_eigenpairs(lambda q: matrix @ q, torch.tensor([1.0, 0.0]), 1, tolerance=1e-6)
    true = torch.linalg.vector_norm(matrix @ pairs.vectors[0] - pairs.values[0] * pairs.vectors[0])
    assert float(pairs.residuals[0]) == pytest.approx(float(true), abs=1e-7)


def root_of(matrix: Tensor, floor: float = 0.0, ceiling: float = float("inf")) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(floor, ceiling).sqrt()[..., None, :] @ vectors.mT


@pytest.mark.parametrize("steps", [12, 40])
def test_the_square_root_is_the_dense_one_with_as_many_products_as_dimensions(steps: int) -> None:
    roots = normal(3, 12, 12)
    matrices, z = roots @ roots.mT / 12, normal(3, 12, seed=5)
    found = square_root(product(matrices), z, steps)
    torch.testing.assert_close(found.product, product(root_of(matrices))(z), rtol=1e-9, atol=1e-9)
    assert found.steps == 12
    assert bool(found.exhausted.all())
    torch.testing.assert_close(found.smallest, torch.linalg.eigvalsh(matrices)[:, 0], rtol=1e-8, atol=1e-12)
    assert float(found.asymmetry.max()) < 1e-12
    torch.testing.assert_close(lanczos_sqrt(product(matrices), z, steps), found.product)


def test_the_square_root_converges_with_the_products() -> None:
    matrix, z = with_spectrum(torch.linspace(0.5, 2, 60, dtype=torch.float64)), normal(60)
    exact = product(root_of(matrix))(z)
    errors = [float((lanczos_sqrt(product(matrix), z, k) - exact).norm() / exact.norm()) for k in (1, 2, 4, 8)]
    assert errors[1] < 0.1
    assert all(later < earlier / 3 for earlier, later in zip(errors, errors[1:], strict=False))


def test_a_row_that_is_exhausted_is_exact_beside_rows_that_are_not() -> None:
    roots = normal(2, 10, 10)
    matrices = roots @ roots.mT
    matrices[0] = 3 * torch.eye(10)
    z = normal(2, 10, seed=5)
    found = square_root(product(matrices), z, 4)
    torch.testing.assert_close(found.product[0], 3**0.5 * z[0])
    assert found.exhausted.tolist() == [True, False]
    assert float(found.smallest[0]) == pytest.approx(3.0)
    alone = square_root(product(matrices[1:]), z[1:], 4)
    torch.testing.assert_close(found.product[1:], alone.product)
    assert square_root(product(matrices[:1]), z[:1], 4).steps == 1


def test_eigenvalues_are_brought_into_their_bounds() -> None:
    matrix, z = with_spectrum(torch.linspace(-1, 3, 9, dtype=torch.float64)), normal(9)
    found = square_root(product(matrix), z, 9, floor=0.5, ceiling=2.0)
    torch.testing.assert_close(found.product, product(root_of(matrix, 0.5, 2.0))(z))
    assert float(found.smallest) == pytest.approx(-1.0)
    for wrong in ({"floor": -1.0}, {"floor": 2.0, "ceiling": 1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="expected steps >= 1, 0 <= floor <= ceiling"):
            square_root(product(matrix), z, **{"steps": 3, **wrong})
    with pytest.raises(ValueError, match="start has norm 0"):
        square_root(product(matrix), torch.zeros(9, dtype=torch.float64), 3)


def test_a_matrix_that_is_not_symmetric_is_seen_to_be_none() -> None:
    matrix, skew = with_spectrum(torch.linspace(1, 2, 8, dtype=torch.float64)), normal(8, 8, seed=9)
    found = square_root(product(matrix + 0.1 * (skew - skew.T)), normal(8), 8)
    assert float(found.asymmetry) > 0.01
    torch.testing.assert_close(found.product, product(root_of(matrix))(normal(8)))


def test_a_product_that_is_not_finite_is_refused_beside_one_that_ends_at_once() -> None:
    def matvec(v: Tensor) -> Tensor:
        product = 2 * v
        product[1] = torch.nan
        return product

    with pytest.raises(FloatingPointError, match="product 1 with the matrix is not finite"):
        square_root(matvec, torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), 3)
