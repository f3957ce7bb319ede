"""Spectra, directions and perturbations from inner products, against the dense matrices that they avoid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_diffusion.metrics.gram import Gram
from cl_diffusion.metrics.half_samples import Estimate, with_error
from cl_diffusion.metrics.stability import stability


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(gradients: Tensor) -> Tensor:
    return gradients.T @ gradients / len(gradients)


def test_the_figures_are_those_of_the_dense_matrix() -> None:
    g = normal(30, 12) * torch.linspace(0.2, 2, 12, dtype=torch.float64) + 0.3
    fisher, mu, found = dense(g), g.mean(0), Gram(g @ g.T).spectrum()
    values, vectors = torch.linalg.eigh(fisher)
    v, norm = vectors[:, -1], torch.linalg.matrix_norm(fisher)
    torch.testing.assert_close(found.eigenvalues[:12], values.flip(0))
    assert found.trace == pytest.approx(float(fisher.trace()))
    assert found.leading_share == pytest.approx(float(values[-1] / values.sum()))
    assert found.second_to_first == pytest.approx(float(values[-2] / values[-1]))
    assert found.effective_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    error = torch.linalg.matrix_norm(fisher - values[-1] * torch.outer(v, v)) / norm
    assert found.leading_error == pytest.approx(float(error))
    best = (mu @ fisher @ mu) / (mu @ mu) ** 2
    error = torch.linalg.matrix_norm(fisher - best * torch.outer(mu, mu)) / norm
    assert found.mean_error == pytest.approx(float(error))
    assert found.mean_share == pytest.approx(float(mu @ mu / fisher.trace()))
    assert found.mean_to_leading == pytest.approx(float((mu @ v).abs() / mu.norm()))
    cosines = torch.nn.functional.cosine_similarity(g, 30 * mu - g)  # with the mean of the others
    assert found.cosine_to_mean == pytest.approx(float(cosines.mean()))


def test_directions_of_two_tasks_in_one_gram_matrix() -> None:
    a, b = normal(20, 9) + 0.5, normal(25, 9, seed=1) * torch.linspace(0.1, 2, 9, dtype=torch.float64)
    gram = Gram(torch.cat([a, b]) @ torch.cat([a, b]).T)
    tasks = torch.arange(20), torch.arange(20, 45)
    v_a, v_b = (torch.linalg.eigh(dense(g))[1][:, -1] for g in (a, b))
    assert abs(gram.cosine(*map(gram.leading, tasks))) == pytest.approx(float((v_a @ v_b).abs()))
    means = torch.nn.functional.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    assert gram.cosine(*map(gram.mean, tasks)) == pytest.approx(float(means))
    assert gram.inner(gram.leading(tasks[0]), gram.leading(tasks[0])) == pytest.approx(1)
    assert gram.spectrum(tasks[1]).trace == pytest.approx(float(dense(b).trace()))


def test_known_answers() -> None:
    v = torch.eye(6, dtype=torch.float64)
    one = normal(40, 1) * v[0]
    found = Gram(one @ one.T).spectrum()
    assert (found.leading_share, found.leading_error) == pytest.approx((1.0, 0.0), abs=1e-7)
    assert (found.effective_rank, found.mean_to_leading, found.mean_error) == pytest.approx((1, 1, 0), abs=1e-6)
    isotropic = torch.cat([v, -v])
    found = Gram(isotropic @ isotropic.T).spectrum()
    assert (found.leading_share, found.second_to_first, found.effective_rank) == pytest.approx((1 / 6, 1.0, 6.0))
    assert (found.mean_share, found.mean_error) == pytest.approx((0, 1), abs=1e-9)
    assert math.isnan(found.mean_to_leading)  # there is no mean
    apart = torch.cat([one, normal(40, 1, seed=1) * v[1]])
    gram = Gram(apart @ apart.T)
    assert gram.cosine(gram.leading(range(40)), gram.leading(range(40, 80))) == pytest.approx(0, abs=1e-9)


def test_of_noise_alone_the_mean_is_one_part_in_n_and_halves_do_not_agree() -> None:
    g = normal(400, 2000)
    gram = Gram(g @ g.T)
    assert gram.spectrum().mean_share == pytest.approx(1 / 400, rel=0.1)
    assert gram.spectrum().cosine_to_mean == pytest.approx(0, abs=0.005)
    assert abs(gram.cosine(gram.mean(range(200)), gram.mean(range(200, 400)))) < 0.1
    planted = g + 0.3 * normal(1, 2000, seed=1)
    gram = Gram(planted @ planted.T)
    halves = gram.cosine(gram.mean(range(200)), gram.mean(range(200, 400)))
    assert halves == pytest.approx(0.09 / (0.09 + 1 / 200), abs=0.02)


@pytest.mark.parametrize("size", [0.02, 0.2, 1.0])
def test_the_perturbation_is_the_dense_one_and_the_angle_within_its_bounds(size: float) -> None:
    linear = normal(50, 8) * torch.tensor([3.0, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    g = linear + size * normal(50, 8, seed=1)
    both = torch.cat([g, linear])
    found, r = stability(both @ both.T), dense(g) - dense(linear)
    values, vectors = torch.linalg.eigh(dense(linear))
    v_linear, v = vectors[:, -1], torch.linalg.eigh(dense(g))[1][:, -1]
    assert found.perturbation == pytest.approx(float(torch.linalg.matrix_norm(r, 2)))
    assert found.gap == pytest.approx(float(values[-1] - values[-2]))
    assert found.sine == pytest.approx(math.sqrt(1 - float(v @ v_linear) ** 2), abs=1e-7)
    apart = float(values[-1] - torch.linalg.eigvalsh(dense(g))[-2])
    known = float((r @ v_linear).norm()) / apart if apart > 0 else math.inf
    assert found.residual_bound == pytest.approx(known)
    for bound in (found.bound, found.sharp_bound, found.residual_bound):
        assert found.sine <= bound + 1e-9
    assert (found.sharp_bound < found.bound) == (found.ratio < 0.5)


def test_the_textbook_bound_without_its_factor_two_is_false() -> None:
    """``sin a <= |R| / gap`` fails for this pair; the bounds here hold."""
    linear = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64) * math.sqrt(2)
    g = math.sqrt(2) * torch.linalg.cholesky(torch.tensor([[0.68, 0.24], [0.24, 0.32]], dtype=torch.float64)).T
    found = stability(torch.cat([g, linear]) @ torch.cat([g, linear]).T)
    assert (found.perturbation, found.gap, found.sine) == pytest.approx((0.4, 1.0, 0.4472), abs=1e-4)
    assert found.ratio < found.sine <= min(found.bound, found.sharp_bound, found.residual_bound) + 1e-9


def test_the_error_by_half_samples_is_that_of_a_mean() -> None:
    values = normal(200)
    found = with_error(lambda of: {"mean": float(values[of["a"]].mean())}, {"a": torch.arange(200)}, repeats=400)
    assert found["mean"].value == pytest.approx(float(values.mean()))
    assert found["mean"].error == pytest.approx(float(values.std()) / 200**0.5, rel=0.15)
    assert found["mean"].samples == 200
    low, high = Estimate(1.0, 0.5, 10).interval
    assert (low, high) == pytest.approx((0.02, 1.98))
    again = with_error(lambda of: {"mean": float(values[of["a"]].mean())}, {"a": torch.arange(200)}, repeats=400)
    assert again == found


def test_paired_sets_are_halved_alike() -> None:
    def figures(of: dict[str, Tensor]) -> dict[str, float]:
        assert torch.equal(of["a"] + 10, of["b"]) or len(of["a"]) == 10
        return {"difference": float((of["b"] - of["a"]).double().mean())}

    members = {"a": torch.arange(10), "b": torch.arange(10, 20)}
    assert with_error(figures, members)["difference"] == Estimate(10.0, 0.0, 10)  # type: ignore[arg-type]


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected inner products"):
        Gram(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="all finite"):
        Gram(torch.full((2, 2), math.nan))
    assert not Gram(torch.zeros(3, 3)).leading([0, 2]).any()  # no direction
    nothing = torch.cat([normal(5, 4), torch.zeros(5, 4, dtype=torch.float64)])
    assert all(math.isnan(figure) for figure in stability(nothing @ nothing.T))
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        Gram(torch.eye(3)).spectrum([1])
    with pytest.raises(ValueError, match="products of 3 gradients; expected those of n samples, then n"):
        stability(torch.eye(3))
    with pytest.raises(ValueError, match="set 'a' has 3 samples; expected at least 4"):
        with_error(lambda of: {}, {"a": torch.arange(3)})
