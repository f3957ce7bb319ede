from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from cl_diffusion.fisher import PathIntegral


def descend(steps: int, rate: float, scale: float = 1.0) -> tuple[PathIntegral, dict[str, Tensor], float]:
    """Gradient descent on an anisotropic quadratic; the decrease of the loss."""
    curvature = torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)
    theta = {"a": torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)}

    def loss() -> float:
        return float(0.5 * (curvature * theta["a"].square()).sum())

    path, before = PathIntegral(theta, damping=0.1), loss()
    for _ in range(steps):
        gradient = curvature * theta["a"]
        path.before_step({"a": scale * gradient}, theta, scale)
        theta["a"].sub_(rate * gradient)
        path.after_step(theta)
    return path, theta, before - loss()


def test_the_path_integral_sums_to_the_decrease_of_the_loss() -> None:
    coarse, _, decrease = descend(100, 0.02)
    fine, _, finer_decrease = descend(1000, 0.002)
    error = abs(float(coarse.path["a"].sum()) - decrease)
    finer = abs(float(fine.path["a"].sum()) - finer_decrease)
    assert finer < 0.12 * error < 0.12 * 0.05 * decrease  # first order in the step


def test_the_importance_is_the_share_over_the_squared_way() -> None:
    path, theta, _ = descend(50, 0.02)
    moved = theta["a"] - path.start["a"]
    expected = 2 * path.path["a"] / (moved.square() + 0.1)
    torch.testing.assert_close(path.operator(theta).diagonal()["a"], expected)
    path.path["a"][0] = -1.0
    assert path.operator(theta).diagonal()["a"][0] == 0  # a loss that rose says nothing of importance


def test_scaled_gradients_are_unscaled() -> None:
    torch.testing.assert_close(descend(10, 0.02, scale=1024.0)[0].path, descend(10, 0.02)[0].path)


def test_a_step_that_was_not_taken_counts_nothing() -> None:
    path, theta, _ = descend(10, 0.02)
    before = path.path["a"].clone()
    path.before_step({"a": torch.ones(3, dtype=torch.float64)}, theta)
    path.before_step({"a": torch.zeros(3, dtype=torch.float64)}, theta)  # the scaler skipped the step before
    theta["a"].add_(1.0)
    path.after_step(theta)
    assert torch.equal(path.path["a"], before)


def test_a_parameter_that_was_not_there_at_the_start_takes_no_part() -> None:
    path, theta, _ = descend(3, 0.02)
    path.before_step({"new": torch.ones(2)}, {"new": torch.ones(2)})
    path.after_step({"new": torch.zeros(2)})
    assert set(path.operator(theta).diagonal()) == {"a"}


def test_half_precision_is_summed_in_single() -> None:
    path = PathIntegral({"a": torch.zeros(2, dtype=torch.bfloat16)}, 0.1)
    assert path.path["a"].dtype == torch.float32


def test_it_survives_a_weights_only_checkpoint() -> None:
    path, theta, _ = descend(5, 0.02)
    buffer = io.BytesIO()
    torch.save(path.state(), buffer)
    buffer.seek(0)
    restored = PathIntegral.from_state(torch.load(buffer, weights_only=True))
    assert torch.equal(restored.operator(theta).diagonal()["a"], path.operator(theta).diagonal()["a"])


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_a_damping_that_is_none_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match="damping=.*; expected a finite number > 0"):
        PathIntegral({}, damping)
