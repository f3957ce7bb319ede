"""The front: a point or a line a method, and what is written beside it."""

from __future__ import annotations

import numpy as np

from cl_diffusion.report.figures import Point, draw_front


def test_points_of_a_method_are_joined_in_their_order_and_a_single_one_is_not() -> None:
    swept = [Point((0.9, 0.1), (0.2, None), "150"), Point((0.5, None), (0.8, None), "1500")]
    (axes,) = draw_front({"swept": swept, "single": [Point((0.7, None), (0.7, None))]}, "learned", "kept").axes
    joined = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    (line,) = [line for line in joined if len(line.get_xdata()) > 1]
    np.testing.assert_array_equal(line.get_xydata(), [[0.9, 0.2], [0.5, 0.8]])
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("150", (0.9, 0.2)), ("1500", (0.5, 0.8))]
    assert axes.get_legend_handles_labels()[1] == ["swept", "single"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learned", "kept")
