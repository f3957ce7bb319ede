from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.comparison import Comparison
from cl_diffusion.report.figures import (
    Point,
    draw_averages,
    draw_cost,
    draw_curves,
    draw_matrices,
    draw_plasticity,
    draw_training,
)
from cl_diffusion.report.figures.canvas import ink, marker
from cl_diffusion.report.logged import by_phase
from cl_diffusion.report.measured import front
from cl_diffusion.report.shown import samples
from tests.report.runs import picture, write


def matrix(tasks: int) -> ContinualMatrix:
    entries = {(after, task): 1.0 / (1 + after - task) for after in range(1, tasks + 1) for task in range(1, after + 1)}
    return ContinualMatrix("accuracy", True, entries)


def test_no_two_of_many_methods_look_the_same() -> None:
    assert len({(ink(number), marker(number)) for number in range(64)}) == 64


@pytest.mark.parametrize("names", [2, 12, 40])
def test_a_long_legend_makes_the_sheet_longer_and_no_panel_smaller(names: int) -> None:
    few = draw_averages({"one": [matrix(3)]}, "accuracy")
    many = draw_averages({f"a method of a rather long name, number {n}": [matrix(3)] for n in range(names)}, "accuracy")
    few.draw_without_rendering()
    many.draw_without_rendering()
    assert many.axes[0].get_window_extent().height > 0.9 * few.axes[0].get_window_extent().height


def test_the_legend_names_each_task_once() -> None:
    figure = draw_curves({"one": matrix(20), "other": matrix(3)}, "accuracy")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"task {task}" for task in range(1, 21)]


def brightness(figure: Any, value: float) -> float:
    (mesh,) = figure.axes[0].collections
    return float(matplotlib.colors.rgb_to_hsv(mesh.cmap(mesh.norm(value))[:3])[2])


@pytest.mark.parametrize("higher", [True, False])
def test_a_heat_map_has_the_tasks_learned_downwards_and_what_is_better_is_brighter(higher: bool) -> None:
    entries = {(1, 1): 0.9, (2, 1): 0.2, (2, 2): 0.5}
    figure = draw_matrices({"one": ContinualMatrix("x", higher, entries)}, "x")
    (mesh,) = figure.axes[0].collections
    shown = np.ma.filled(mesh.get_array().reshape(2, 2), np.nan)
    np.testing.assert_array_equal(shown, [[0.9, np.nan], [0.2, 0.5]])
    assert figure.axes[0].yaxis_inverted()
    assert (brightness(figure, 0.9) > brightness(figure, 0.2)) == higher


def test_a_curve_is_of_a_task_from_when_it_was_learned_on() -> None:
    known = {(1, 1): 0.9, (1, 2): 0.1, (2, 1): 0.4, (2, 2): 0.8}  # the second task was looked at before, too
    figure = draw_curves({"one": ContinualMatrix("x", True, known)}, "x")
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"task 1": [[1, 0.9], [2, 0.4]], "task 2": [[2, 0.8]]}


def test_the_average_is_over_all_tasks_seen_so_far() -> None:
    figure = draw_averages({"one": [ContinualMatrix("x", True, {(1, 1): 1.0, (2, 1): 0.0, (2, 2): 0.5})]}, "x")
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 1.0], [2, 0.25]]


def test_the_front_has_what_is_learned_across_and_what_is_kept_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", strength=1.0)
    write(tmp_path / "two", strength=2.0)
    drawn: list[dict[str, list[Point]]] = []
    axes: list[str] = []

    def keep(points: Any, across: str, up: str) -> None:
        drawn.append(points)
        axes.extend((across, up))

    monkeypatch.setattr("cl_diffusion.report.measured.draw_front", keep)
    drawings: Any = type("Drawings", (), {"svg": lambda self, figure, said: said})()
    assert front(Comparison.of([tmp_path]), drawings) is not None
    (point,) = drawn[0]["one"]
    assert point.across[0] == pytest.approx(0.9)  # each task when it was learned
    assert point.up[0] == pytest.approx((0.5 + 0.7) / 2)
    assert axes[0].startswith("plasticity")
    assert axes[1].startswith("retention")


@pytest.mark.parametrize(("longest", "unit", "name"), [(200.0, 1.0, "seconds"), (600.0, 60.0, "minutes")])
def test_bars_of_cost_are_as_long_as_the_time_that_they_name(longest: float, unit: float, name: str) -> None:
    (axes,) = draw_cost({"one": {"training": 150.0, "fisher": longest - 150}, "other": {"training": 50.0}}).axes
    assert [bar.get_width() * unit for bar in axes.patches] == pytest.approx([150, 50, longest - 150, 0])
    assert [bar.get_x() * unit for bar in axes.patches][2] == pytest.approx(150)
    assert axes.get_xlabel() == f"wall time, {name}"


def test_training_has_a_line_at_the_end_of_each_task() -> None:
    figure = draw_training({"loss": {"one": ([0.0, 50.0, 100.0], [3.0, 2.0, 1.0])}}, boundaries=[40.0, 80.0])
    ends = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert ends == [40.0, 80.0]


def test_plasticity_is_the_mean_over_the_layers_that_have_the_figure() -> None:
    rows = [(1, "a", "dead", 0.2), (1, "b", "dead", 0.4), (2, "a", "dead", 0.5), (2, "b", "dead", float("nan"))]
    (line,) = draw_plasticity({"one": rows}).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.3], [2, 0.5]])


def test_samples_are_of_the_first_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write(tmp_path / f"m_{seed}", seed=seed, tasks=1)
        picture(folder / "samples" / "after_task_1.png", side=8 + seed)
    (shown,) = samples(Comparison.of([tmp_path]))
    (alone,) = samples(Comparison.of([tmp_path / "m_0"]))
    assert shown.pictures == alone.pictures


def test_the_cost_of_a_phase_is_over_all_tasks(tmp_path: Path) -> None:
    (run,) = Comparison.of([write(tmp_path / "m", tasks=3)]).runs
    assert by_phase(run)["training"] == 30.0
