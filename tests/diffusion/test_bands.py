from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.diffusion import NoiseSchedule, SNRBand, quantile_bands


@given(
    steps=st.integers(10, 60),
    cosine=st.booleans(),
    cuts=st.lists(st.integers(1, 9), unique=True, max_size=4).map(sorted),
)
def test_quantile_bands_partition_the_timesteps_in_the_asked_shares(steps: int, cosine: bool, cuts: list[int]) -> None:
    schedule = NoiseSchedule.cosine(steps) if cosine else NoiseSchedule.linear(steps)
    quantiles = [cut / 10 for cut in cuts]
    bands = quantile_bands(schedule, quantiles, names=[f"band{i}" for i in range(len(cuts) + 1)])
    timesteps = [band.timesteps(schedule) for band in bands]
    assert torch.cat(timesteps[::-1]).tolist() == list(range(steps))
    below = 0
    for quantile, members in zip(quantiles, timesteps, strict=False):
        below += len(members)
        assert below / steps == pytest.approx(quantile, abs=0.5 / steps + 1e-12)


def test_low_is_the_noisy_end() -> None:
    low, mid, high = quantile_bands(NoiseSchedule.linear(9))
    schedule = NoiseSchedule.linear(9)
    assert (low.name, mid.name, high.name) == ("low", "mid", "high")
    assert low.timesteps(schedule).tolist() == [6, 7, 8]
    assert high.timesteps(schedule).tolist() == [0, 1, 2]
    assert (low.low, high.high) == (-math.inf, math.inf)


def test_bands_survive_rounding_of_log_snr_to_float32() -> None:
    schedule = NoiseSchedule.cosine(4000)
    for band in quantile_bands(schedule, [i / 20 for i in range(1, 20)], [str(i) for i in range(20)]):
        assert band.contains(schedule.log_snr.float().double()).equal(band.contains(schedule.log_snr))


def test_a_band_is_half_open_in_the_log_of_the_power_ratio() -> None:
    schedule = NoiseSchedule([0.9, 0.5, 0.1])  # log-snr: log 9, 0, -log 9
    assert SNRBand("b", 0.0, 3.0).timesteps(schedule).tolist() == [0, 1]
    assert SNRBand("b", -3.0, 0.0).timesteps(schedule).tolist() == [2]
    assert SNRBand("all").contains(torch.tensor([-1e30, 0.0, 1e30])).all()


def test_an_empty_band_names_the_range_of_the_schedule() -> None:
    with pytest.raises(ValueError, match=r"band 'far' = \[50.0, inf\).*from -10.12 to 9.21"):
        SNRBand("far", 50.0).timesteps(NoiseSchedule.linear())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_a_band_needs_low_below_high(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be less than high"):
        SNRBand("b", low, high)


@pytest.mark.parametrize(
    ("quantiles", "names", "message"),
    [
        ((0.5,), ("low", "mid", "high"), "expected 2 distinct names"),
        ((0.5,), ("low", "low"), "expected 2 distinct names"),
        ((0.7, 0.3), ("a", "b", "c"), "expected increasing"),
        ((0.0,), ("a", "b"), "expected increasing"),
        ((0.5, 0.51), ("a", "b", "c"), "at least one timestep"),
    ],
)
def test_quantiles_that_cut_no_partition_are_refused(
    quantiles: tuple[float, ...], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quantile_bands(NoiseSchedule.linear(10), quantiles, names)
