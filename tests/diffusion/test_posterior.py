from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.posterior import posterior

SCHEDULE = NoiseSchedule.linear(100)
PAIRS = st.lists(st.integers(-1, 99), min_size=2, max_size=2, unique=True).map(sorted)
TRIPLES = st.lists(st.integers(-1, 99), min_size=3, max_size=3, unique=True).map(sorted)


@given(PAIRS)
def test_the_posterior_is_the_gaussian_conditional_of_the_joint(pair: list[int]) -> None:
    """Condition (x_s, x_t) given x0 on x_t: the joint covariance is [[1-a_s, r(1-a_s)], [., 1-a_t]], r^2 = a_t/a_s."""
    s, t = pair
    a_s, a_t = SCHEDULE.alpha_bar_at(s), SCHEDULE.alpha_bar_at(t)
    gain = (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
    q = posterior(SCHEDULE, s, t)
    assert q.c1 == pytest.approx(gain, rel=1e-12)
    assert q.c0 == pytest.approx(a_s**0.5 - gain * a_t**0.5, rel=1e-9)
    assert q.variance == pytest.approx((1 - a_s) - gain * (a_t / a_s) ** 0.5 * (1 - a_s), rel=1e-9, abs=1e-15)


@given(TRIPLES)
def test_two_steps_compose_to_one(triple: list[int]) -> None:
    """q(x_r | x_s, x0) after q(x_s | x_t, x0) is q(x_r | x_t, x0)."""
    r, s, t = triple
    first, second, whole = posterior(SCHEDULE, s, t), posterior(SCHEDULE, r, s), posterior(SCHEDULE, r, t)
    assert second.c1 * first.c1 == pytest.approx(whole.c1, rel=1e-9, abs=1e-15)
    assert second.c0 + second.c1 * first.c0 == pytest.approx(whole.c0, rel=1e-9)
    variance = second.variance + second.c1**2 * first.variance
    assert variance == pytest.approx(whole.variance, rel=1e-9, abs=1e-15)
    assert (1 - first.beta) * (1 - second.beta) == pytest.approx(1 - whole.beta, rel=1e-12)


def test_the_last_step_returns_the_clean_image() -> None:
    q = posterior(SCHEDULE, -1, 0)
    x0, x_t = torch.randn(2, 1, 3, 3).unbind(0)
    assert (q.c1, q.variance) == (0.0, 0.0)
    assert q.mean(x0, x_t).equal(x0)


@pytest.mark.parametrize(("s", "t", "message"), [(3, 3, "s=3, t=3"), (-2, 3, "t=-2"), (3, 100, "t=100")])
def test_a_step_must_go_down_within_the_schedule(s: int, t: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posterior(SCHEDULE, s, t)
