"""How parts grow is fitted, and the bill of a large stream is what its formulas say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EQUIVALENTS = {"forward": 1.0, "training step": 3.0, "distilled step": 4.0, "sampler": 1.0, "diagonal": 4.0}


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """Modules of the tool, by name, as it imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def report(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command prints and writes at its smallest."""
    folder = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CL_DIFFUSION_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["bench_scale.py", "--quick", "--json", "scale.json", "--gpu-gb", "40"])
        tools("bench_scale").main()
    return json.loads((folder / "scale.json").read_text())


@pytest.fixture(scope="module")
def bill(tools: Any) -> Any:
    """Of a network whose sizes are round."""
    network = tools("scale_networks").Counted(
        parameters=10**9,
        flop=1e12,
        activation_bytes=1e9,
        kronecker_bytes=5e10,
        factor_entries=1e10,
        factor_cubes=1e13,
        units=1000,
        image_values=12288,
    )
    scenarios = tools("scale_scenarios")

    def of(equivalents: dict[str, float] = EQUIVALENTS, gpus: int = 8, tasks: int = 20, **assumed: Any) -> Any:
        scenario = scenarios.Scenario("large", gpus, {}, tasks=tasks)
        return tools("scale_bill").Bill(scenario, scenarios.Assumptions(**assumed), equivalents, network=network)

    return of


def part(bill: Any, name: str) -> Any:
    (found,) = [each for each in bill.parts() if each.name.strip() == name]
    return found


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.5])
def test_a_power_law_is_found_again(tools: Any, exponent: float) -> None:
    points = [(x, 3 * x**exponent) for x in (1.0, 10.0, 100.0)]
    growth = tools("scale_growth").Growth("part", "bytes", "tasks", tuple(points))
    assert growth.power.exponent == pytest.approx(exponent, abs=1e-12)
    assert growth.law(1e6) == pytest.approx(3 * 1e6**exponent)
    assert tools("scale_growth").residual(growth.law, points) < 1e-12


def test_a_line_with_a_constant_is_nearer_than_a_power_law_where_there_is_one(tools: Any) -> None:
    points = [(x, 7 + 2 * x) for x in (1.0, 10.0, 100.0)]
    growth = tools("scale_growth").Growth("part", "seconds", "samples", tuple(points))
    assert growth.law(1000.0) == pytest.approx(2007)
    assert growth.power.exponent < 0.9


@pytest.mark.parametrize("points", [[(1.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)], [(1.0, 0.0), (2.0, 1.0)]])
def test_points_through_which_no_law_goes_are_refused(tools: Any, points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        tools("scale_growth").power_law(points)


def test_what_is_counted_of_a_network_is_what_it_has_and_what_its_fisher_keeps(tools: Any) -> None:
    from cl_diffusion.fisher import KroneckerFisher, estimate

    networks = tools("scale_networks")
    model = networks.small(8, 16)
    counted = networks.counted(8, 1, {"block_out_channels": (16, 32)})
    kept = estimate(KroneckerFisher(), model, networks.loss, networks.drawn_batches(model, 8, 8))
    assert counted.parameters == networks.num_parameters(model)
    assert counted.kronecker_bytes == networks.tensor_bytes(kept.state())


def test_activations_are_counted_once_and_in_proportion_to_the_image(tools: Any) -> None:
    networks = tools("scale_networks")
    small, large = (networks.counted(size, 1, {"block_out_channels": (8, 16)}) for size in (16, 32))
    assert small.parameters == large.parameters
    assert large.activation_bytes / small.activation_bytes == pytest.approx(4, rel=0.05)
    assert 4 < large.flop / small.flop < 8  # attention alone grows faster


def test_bytes_grow_as_they_must(report: Any) -> None:
    exponents = {(row["part"], row["quantity"]): row["power"]["exponent"] for row in report["growth"]}
    assert exponents["penalty: diagonal, merged", "bytes kept"] == pytest.approx(0, abs=1e-9)
    for linear in (
        "penalty: rank one, separate",
        "penalty: Kronecker, one layer",
        "replay pool",
        "diagonal",
        "teacher",
    ):
        assert exponents[linear, "bytes kept"] == pytest.approx(1, abs=1e-6)
    assert exponents["drawing of a replay pool", "evaluations"] == pytest.approx(1, abs=1e-6)
    assert exponents["metrics at a boundary", "evaluations"] == pytest.approx(1, abs=0.02)


def test_the_command_writes_a_bill_for_every_scenario(report: Any) -> None:
    sizes = [(bill["scenario"]["gpus"], round(bill["network"]["parameters"] / 1e6)) for bill in report["bills"]]
    assert sizes == [(8, 295), (8, 991), (64, 991)]
    assert report["assumptions"]["gpu_gb"] == 40
    assert report["equivalents"]["forward"] == 1
    for bill in report["bills"]:
        fits = {part["name"]: part["fits"] for part in bill["parts"]}
        assert not fits["penalty: Kronecker"]
        assert any(fits.values())


def test_the_bytes_of_the_bill_are_those_of_the_formulas(bill: Any) -> None:
    found = bill()
    assert part(found, "penalty: diagonal, merged").gpu == 8e9
    assert part(found, "penalty: diagonal, merged").disk == 16e9
    assert part(bill(tasks=40), "penalty: diagonal, merged").gpu == 8e9
    assert part(found, "penalty: rank one, separate").gpu == 20 * 8e9
    assert part(found, "penalty: rank one, merged").gpu == 22 * 4e9
    assert part(found, "penalty: Kronecker").disk == 20 * (5e10 + 4e9)
    assert part(found, "training step").disk == 12e9
    assert part(found, "replay pool").host == 1000 * 950 * 12288
    teacher = part(found, "teacher, and its part of each step")
    assert found.needed(teacher) == 16e9 + 4e9 + 64 * 0.5e9 + 4e9  # Adam and gradients, buckets, activations, itself
    merged = part(found, "penalty: diagonal, merged")
    assert found.needed(merged, sharded=True) == 16e9 / 8 + 64 * 0.5e9 + 8e9 / 8


def test_hours_are_forward_passes_over_the_assumed_rate_and_do_not_know_how_many_gpus_share_them(bill: Any) -> None:
    expected = 3 * 1_281_167 * 200 * 1e12 / (989e12 * 0.35) / 3600
    assert part(bill(), "training step").hours == pytest.approx(expected)
    assert part(bill(gpus=64), "training step").hours == pytest.approx(expected)
    fewer = part(bill(tasks=10), "metrics: losses").hours
    assert part(bill(), "metrics: losses").hours / fewer == pytest.approx(
        21 / 11
    )  # T (T + 1) / 2 evaluations of a T-th
    dearer, usual = (part(bill({**EQUIVALENTS, "diagonal": cost}), "Fisher: diagonal").hours for cost in (8.0, 4.0))
    assert dearer > 1.5 * usual


def test_a_part_that_does_not_fit_says_so_and_fits_a_larger_gpu(bill: Any, tools: Any) -> None:
    name, lines = "penalty: rank one, separate", tools("scale_bill_lines").lines
    verdicts = {size: {line[0]: line[3] for line in lines(bill(gpu_gb=size))} for size in (80.0, 800.0)}
    assert verdicts[80.0][name] == "DOES NOT FIT"
    assert verdicts[800.0][name] == "yes"
    assert bill(gpu_gb=80.0).chunk() == 15
    assert bill(gpu_gb=10.0).chunk() == 0


@pytest.mark.slow
def test_processes_send_double_precision_of_every_parameter(tools: Any) -> None:
    growths = {(g.part, g.across): g for g in tools("scale_processes").across((1, 2), (16, 32))}
    law = tools("scale_growth").affine
    assert law(growths["all-reduce: diagonal", "parameters"].points).slope == pytest.approx(8, rel=1e-6)
    assert law(growths["all-reduce: mean gradient", "parameters"].points).slope == pytest.approx(16, rel=1e-6)
