from __future__ import annotations

import pytest

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures import draw_averages, draw_curves
from cl_diffusion.report.figures.canvas import ink, marker


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
