from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch

from cl_diffusion.diffusion import NoiseSchedule, Prediction
from cl_diffusion.diffusion.prediction import training_target, x0_and_noise

PREDICTIONS = get_args(Prediction)
SCHEDULE = NoiseSchedule.linear()
T = torch.tensor([0, 10, 500, 900])
X0, NOISE = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
X_T = SCHEDULE.add_noise(X0, NOISE, T)
SCALES = SCHEDULE.scales(T, like=X0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_determines_the_pair_that_it_was_made_of(prediction: Prediction) -> None:
    x0, noise = x0_and_noise(prediction, training_target(prediction, X0, NOISE, SCALES), X_T, SCALES)
    torch.testing.assert_close(x0, X0, rtol=0, atol=1e-12)
    torch.testing.assert_close(noise, NOISE, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("source", "via"), list(product(PREDICTIONS, repeat=2)))
def test_converting_any_output_there_and_back_changes_nothing(source: Prediction, via: Prediction) -> None:
    output = torch.randn_like(X0)
    there = training_target(via, *x0_and_noise(source, output, X_T, SCALES), SCALES)
    back = training_target(source, *x0_and_noise(via, there, X_T, SCALES), SCALES)
    torch.testing.assert_close(back, output, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_describes_a_pair_that_mixes_to_x_t(prediction: Prediction) -> None:
    x0, noise = x0_and_noise(prediction, torch.randn_like(X0), X_T, SCALES)
    torch.testing.assert_close(SCALES.signal * x0 + SCALES.noise * noise, X_T, rtol=0, atol=1e-12)


def test_v_is_the_derivative_of_x_t_by_the_angle() -> None:
    """x_phi = cos(phi) x0 + sin(phi) eps; v = d x_phi / d phi (Salimans & Ho 2022, appendix D)."""
    angle = torch.atan2(SCALES.noise, SCALES.signal)
    _, derivative = torch.func.jvp(
        lambda phi: torch.cos(phi) * X0 + torch.sin(phi) * NOISE, (angle,), (torch.ones_like(angle),)
    )
    torch.testing.assert_close(training_target("v", X0, NOISE, SCALES), derivative)


def test_an_unknown_prediction_is_refused_by_name() -> None:
    message = "prediction='score': expected one of 'epsilon', 'x0', 'v'"
    with pytest.raises(ValueError, match=message):
        training_target("score", X0, NOISE, SCALES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        x0_and_noise("score", X0, X_T, SCALES)  # type: ignore[arg-type]
