"""Thresholds that follow from a unit's own firing, on firing that is known."""

from __future__ import annotations

import math

import pytest
import torch

from cl_diffusion.plasticity.firing import FiringRates, InterFiringTimes


def simulated(rates: torch.Tensor, batch: int, steps: int, detector: InterFiringTimes) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        detector.observe(torch.rand(len(rates), generator=generator) < rates, batch)


@pytest.mark.parametrize("eta", [0.01, 0.02, 0.08])
def test_one_update_finds_the_quantile_of_each_unit_s_own_law(eta: float) -> None:
    rates, batch = torch.tensor([0.02, 0.05, 0.1, 0.3]), 4
    targets = batch * torch.ceil(math.log(eta) / torch.log(1 - rates))
    detector = InterFiringTimes(4, eta, initial_age=int(4 * targets.max()))
    simulated(rates, batch, 400_000 // 4, detector)
    detector.update(batch)
    torch.testing.assert_close(detector.limits.float(), targets, rtol=0.1, atol=batch)


def test_a_threshold_that_is_too_short_doubles_until_it_is_not() -> None:
    """Resets at the threshold are in the histogram, and would keep it there."""
    detector = InterFiringTimes(1, 0.02, initial_age=8)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(12):
        for _ in range(2000):
            due = detector.observe(torch.rand(1, generator=generator) < 0.05, 1)
            if due is not None:
                detector.reset(due)
        detector.update(1)
        seen.append(float(detector.limits))
    assert seen[:3] == [16, 32, 64]
    assert max(seen) <= 160
    target = math.ceil(math.log(0.02) / math.log(0.95))  # 77
    assert any(abs(limit - target) < 0.35 * target for limit in seen[3:])


def test_a_unit_that_always_fires_or_never_does_keeps_its_threshold() -> None:
    detector = InterFiringTimes(2, 0.02, initial_age=100)
    for _ in range(50):
        due = detector.observe(torch.tensor([True, False]), 16)
        assert (due is None) == (int(detector.ages[1]) < 100)
        assert due is None or due.tolist() == [False, True]
    detector.update(16)
    assert detector.limits.tolist() == [100, 100]
    assert detector.ages.tolist() == [0, 800]


def test_thresholds_stay_between_a_batch_and_the_most() -> None:
    detector = InterFiringTimes(2, 0.5, initial_age=64, max_age=100)
    for fired in ([False, False], [True, False], *([[False, False]] * 12), [True, True]):
        detector.observe(torch.tensor(fired), 8)
    detector.update(32)
    assert detector.limits.tolist() == [32, 100]


def test_a_checkpoint_holds_the_histogram() -> None:
    one, other = (InterFiringTimes(3, 0.05, initial_age=500) for _ in range(2))
    rates = torch.tensor([0.1, 0.2, 0.4])
    simulated(rates, 2, 3000, one)
    other.load_state_dict(one.state_dict())
    for detector in (one, other):
        simulated(rates, 2, 3000, detector)
        detector.update(2)
    assert torch.equal(one.limits, other.limits)
    assert len(one.state_dict()["keys"]) < 500  # ages that there were, and no others


@pytest.mark.parametrize("uneven", [False, True])
def test_events_come_to_what_each_age_by_itself_does(uneven: bool) -> None:
    """Ages, histogram and who is due, counted step by step; layers may see different numbers of examples."""
    generator = torch.Generator().manual_seed(1)
    rates, examples = torch.tensor([0.0, 0.02, 0.1, 0.5, 0.97, 1.0]), 5
    detector = InterFiringTimes(6, 0.1, initial_age=120)
    ages, seen = [0] * 6, [dict[int, int]() for _ in range(6)]

    def count(unit: int) -> None:
        if ages[unit]:
            seen[unit][ages[unit]] = seen[unit].get(ages[unit], 0) + 1
        ages[unit] = 0

    for step in range(1500):
        fired = torch.rand(6, generator=generator) < rates
        passed = torch.tensor([examples + (unit % 2 if uneven and step > 700 else 0) for unit in range(6)])
        for unit in range(6):
            if fired[unit]:
                count(unit)
            else:
                ages[unit] += int(passed[unit])
        due = detector.observe(fired, passed if uneven and step > 700 else examples)
        overdue = [age >= limit for age, limit in zip(ages, detector.limits.tolist(), strict=True)]
        assert (due.tolist() if due is not None else [False] * 6) == overdue
        assert detector.ages.tolist() == ages
        if due is not None:
            detector.reset(due)
            for unit in due.nonzero().flatten().tolist():
                count(unit)
        if step in (300, 1100):
            detector.update(examples)
    state = detector.state_dict()
    of, age = state["keys"] // (detector.max_age + 1), state["keys"] % (detector.max_age + 1)
    held = [dict(zip(age[of == unit].tolist(), state["counts"][of == unit].tolist(), strict=True)) for unit in range(6)]
    assert held == seen
    assert len(set(detector.limits.tolist())) > 2


def test_rates_are_counted_over_positions_and_only_the_silent_are_due() -> None:
    detector = FiringRates(2, 0.02)
    for _ in range(200):
        due = detector.observe(torch.tensor([64, 1]), torch.tensor([640, 640]))
        assert due is None
    torch.testing.assert_close(
        detector.limits, -math.log(0.02) * 128_001 / torch.tensor([12_801.0, 201.0], dtype=torch.float64)
    )
    assert detector.ages.tolist() == [10, 640]
    due = detector.observe(torch.tensor([0, 1]), torch.tensor([640, 640]))
    assert due is not None
    assert due.tolist() == [True, False]
    detector.reset(due)
    assert detector.ages[0] == 0
    assert detector.fired[0] == 12_801
    again = FiringRates(2, 0.02)
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.limits, detector.limits)
