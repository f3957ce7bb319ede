"""Predictions of a step, where they are exact and where they are not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_diffusion.fisher import OutputLoss, SquaredError
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.probe import Changes, Probe, Slopes, random_directions
from cl_diffusion.linalg import parameters
from cl_diffusion.metrics.linear_gaussian import LinearGaussian
from cl_diffusion.metrics.nonlinearity import distance_from_linear
from cl_diffusion.metrics.preservation import Damage, Preservation, Response, rank_correlation

DIMENSION = 5


def probe(remainder: float) -> Probe:
    model = LinearGaussian(DIMENSION, remainder=remainder)
    generator = torch.Generator().manual_seed(0)
    x = model.inputs(200, generator)
    y = 0.8 * x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return Probe(Population(model, model.loss, list(zip(x.split(50), y.split(50), strict=True))))


def directions(count: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for number in range(count):
        u = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
        u *= torch.linspace(0.1, 2, DIMENSION)[number % DIMENSION]
        found[f"u{number}"] = {"weight": u}
    return found


def preservation(radii: tuple[float, ...], of: Probe) -> Preservation:
    responses = {
        name: Response(
            of.slopes(u), {r: (of.changes(parameters.scale(u, r)), of.changes(parameters.scale(u, -r))) for r in radii}
        )
        for name, u in directions(10).items()
    }
    sizes = 2 * of.losses  # |r|^2 of a loss |r|^2 / 2
    return Preservation(responses, sizes, {"nothing": dict.fromkeys(responses, 1.0)})


def test_a_quadratic_loss_keeps_every_word_of_its_curvature_at_every_radius() -> None:
    of = preservation((0.01, 1.0), probe(0.0))
    found = of.estimates(repeats=5)
    for claim in ("loss", "output", "along_residual"):
        for radius in ("0.01", "1"):
            for figure in ("ratio", "rank_correlation"):
                assert found[f"{claim}/{figure}/{radius}"].value == pytest.approx(1, abs=1e-6)
    assert found["each_loss/ratio/0.01"].value == pytest.approx(1, abs=0.05)  # first order
    assert found["each_loss/ratio/1"].value > 1.2
    assert math.isnan(found["loss/rank_correlation by nothing/1"].value)
    empirical = [float(each.slopes.loss.square().mean()) for each in of.responses.values()]
    measured = [pair[1] for pair in of.table()["1"]["loss"].values()]
    assert found["loss/rank_correlation by F/1"].value == pytest.approx(rank_correlation(empirical, measured))
    assert found["loss/rank_correlation by F/1"].value > 0.5
    assert found["each_sample/correlation/0.01"].value == pytest.approx(1, abs=1e-6)
    assert found["each_output/correlation/1"].value == pytest.approx(1, abs=1e-6)
    assert found["empirical_to_true_least"].value <= found["empirical_to_true"].value


def test_the_curve_of_a_network_shows_in_large_steps_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of = Probe(Population(model, OutputLoss(SquaredError()), [(x, x[:, :2])]))
    generator = torch.Generator().manual_seed(1)
    us = [
        {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
        for _ in range(5)
    ]
    responses = {
        str(i): Response(
            of.slopes(u),
            {r: (of.changes(parameters.scale(u, r)), of.changes(parameters.scale(u, -r))) for r in (1e-3, 1.0)},
        )
        for i, u in enumerate(us)
    }
    found = Preservation(responses).estimates(repeats=5)
    assert found["output/ratio/0.001"].value == pytest.approx(1, abs=1e-3)
    assert abs(found["output/ratio/1"].value - 1) > 0.1
    assert "along_residual/ratio/1" not in found


def test_the_damage_of_a_displacement_is_split_by_directions() -> None:
    n = 40
    zeros = torch.zeros(n, dtype=torch.float64)
    whole, part, rest = (Changes(zeros + value, None, None) for value in (1.0, 0.25, 0.75))
    assert set(Damage(whole, {}, {}, {}).estimates()) == {"loss", "each_loss"}  # without derivatives
    found = Damage(whole, {"v": part}, {"v": rest}, {"v": 0.01}, Slopes(zeros + 0.5, zeros + 0.8, zeros)).estimates()
    assert found["loss"].value == 1
    assert found["share_along v"].value == 0.25
    assert found["loss_without v"].value == 0.75
    assert found["predicted"].value == pytest.approx(0.9)
    assert found["length_along v"].value == 0.01


def test_ranks_share_ties() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    from scipy.stats import spearmanr

    a, b = [1.0, 1.0, 2.0, 5.0, 3.0], [2.0, 1.0, 1.0, 9.0, 1.0]
    assert rank_correlation(a, b) == pytest.approx(float(spearmanr(a, b).statistic))


def test_directions_that_know_of_nothing_are_of_unit_length_and_the_seed_s() -> None:
    like = {"a": torch.zeros(40, 30), "b": torch.zeros(17, dtype=torch.float64)}
    found = random_directions(like, 3, seed=0)
    assert set(found) == {f"{kind} {n}" for kind in ("random", "coordinate") for n in (1, 2, 3)}
    for name, u in found.items():
        assert float(parameters.norm(u)) == pytest.approx(1, abs=1e-5)
        assert {key: part.dtype for key, part in u.items()} == {key: part.dtype for key, part in like.items()}
        entries = sum(int((part != 0).sum()) for part in u.values())
        assert entries == 1 if name.startswith("coordinate") else entries > 1000
    again, other = random_directions(like, 3, seed=0), random_directions(like, 3, seed=1)
    assert torch.equal(again["random 2"]["a"], found["random 2"]["a"])
    assert not torch.equal(other["random 2"]["a"], found["random 2"]["a"])


def test_the_distance_from_linear_is_a_ratio_of_root_mean_squares() -> None:
    apart, sizes = torch.full((40,), 4.0), torch.full((40,), 16.0)
    found = distance_from_linear(apart, sizes)
    assert (found.value, found.error) == (0.5, 0.0)
    generator = torch.Generator().manual_seed(0)
    apart = torch.rand(4000, generator=generator, dtype=torch.float64)
    found = distance_from_linear(apart, torch.ones(4000, dtype=torch.float64))
    assert found.value == pytest.approx(float(apart.mean()) ** 0.5)
    expected = float(apart.std()) / 4000**0.5 / (2 * found.value)
    assert found.error == pytest.approx(expected, rel=0.35)
