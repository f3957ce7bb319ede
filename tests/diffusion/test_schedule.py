from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.diffusion import NoiseSchedule

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule([0.9, 0.5, 1e-3])]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scales_have_unit_power_in_float64(schedule: NoiseSchedule) -> None:
    t = torch.arange(schedule.num_steps)
    signal, noise = schedule.scales(t, like=torch.zeros(len(t), dtype=torch.float64))
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal), rtol=0, atol=4e-16)
    torch.testing.assert_close(schedule.log_snr.sigmoid(), schedule.alpha_bar, rtol=1e-12, atol=0)


def test_linear_is_the_product_of_one_minus_beta() -> None:
    schedule = NoiseSchedule.linear(5, 0.125, 0.625)
    product, expected = Fraction(1), []
    for i in range(5):
        product *= 1 - (Fraction(1, 8) + i * Fraction(1, 8))
        expected.append(float(product))
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_cosine_leaves_half_the_power_halfway() -> None:
    schedule = NoiseSchedule.cosine(1000)
    assert schedule.alpha_bar_at(499) == pytest.approx(0.5, abs=0.02)
    assert schedule.alpha_bar_at(999) / schedule.alpha_bar_at(998) == pytest.approx(1e-3)


def test_float32_noise_keeps_its_digits_where_there_is_little_of_it() -> None:
    schedule = NoiseSchedule([1 - 1e-7, 0.5])
    _, noise = schedule.scales(torch.tensor([0]), like=torch.zeros(1))
    assert noise.dtype == torch.float32
    assert noise.item() == pytest.approx(1e-7**0.5, rel=1e-6)  # 1 - abar formed in float32 is off by 9%


@given(st.integers(0, 999), st.floats(-1, 1), st.floats(-4, 4))
def test_noising_keeps_the_power_of_a_pair(t: int, x0: float, noise: float) -> None:
    """(x0, eps) -> (x_t, v) is a rotation."""
    schedule, index = SCHEDULES[0], torch.tensor([t])
    a, b = torch.tensor([[x0, -noise]], dtype=torch.float64), torch.tensor([[noise, x0]], dtype=torch.float64)
    x_t, v = schedule.add_noise(a, b, index).unbind(1)
    assert (x_t**2 + v**2).item() == pytest.approx(x0**2 + noise**2, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_added_to_each_sample_by_its_own_timestep_in_the_dtype_of_the_image(dtype: torch.dtype) -> None:
    schedule = NoiseSchedule.linear()
    t = torch.tensor([999, 0, 500])
    x0, noise = torch.randn(2, 3, 2, 4, 5, dtype=dtype).unbind(0)
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.dtype == dtype
    for i, abar in enumerate(schedule.alpha_bar[t].tolist()):
        expected = abar**0.5 * x0[i].double() + (1 - abar) ** 0.5 * noise[i].double()
        torch.testing.assert_close(x_t[i].double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_vmap_over_timesteps_is_the_batch() -> None:
    schedule = NoiseSchedule.linear(20)
    x0, noise, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.tensor([0, 19, 3, 3])
    one = torch.func.vmap(lambda x, e, i: schedule.add_noise(x[None], e[None], i[None])[0])
    torch.testing.assert_close(one(x0, noise, t), schedule.add_noise(x0, noise, t), rtol=0, atol=0)


def test_tables_follow_the_device_and_never_the_dtype() -> None:
    module = torch.nn.ModuleList([NoiseSchedule.linear()])
    schedule = module[0]
    expected = copy.deepcopy(schedule.signal)
    assert module.to(torch.bfloat16)[0].signal.equal(expected)
    assert module.half().float()[0].noise.dtype == torch.float64
    assert module.to("meta")[0].signal.device.type == "meta"
    assert schedule.alpha_bar.device.type == "cpu"
    assert module.to_empty(device="cpu")[0].signal.equal(expected)
    assert module.state_dict() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_is_added_on_the_gpu() -> None:
    schedule, x0, t = NoiseSchedule.linear(), torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 999])
    expected = schedule.add_noise(x0, x0, t)
    torch.testing.assert_close(schedule.cuda().add_noise(x0.cuda(), x0.cuda(), t.cuda()).cpu(), expected)


def test_alpha_bar_at_counts_the_clean_image_as_minus_one() -> None:
    schedule = SCHEDULES[2]
    assert [schedule.alpha_bar_at(t) for t in (-1, 0, 1, 2)] == [1.0, 0.9, 0.5, 1e-3]
    for t in (-2, 3):
        with pytest.raises(ValueError, match=rf"t={t}: expected a timestep in 0..2"):
            schedule.alpha_bar_at(t)


@pytest.mark.parametrize(
    ("alpha_bar", "message"),
    [
        ([0.9, 0.9, 0.1], r"alpha_bar\[1\]=0.9: expected less than 0.9"),
        ([0.9, 0.5, 0.0], r"alpha_bar\[2\]=0.0: expected a value in \(0, 1\)"),
        ([1.0, 0.5], r"alpha_bar\[0\]=1.0"),
        ([0.9, float("nan")], r"alpha_bar\[1\]=nan"),
        ([], r"shape \(0,\)"),
        (torch.full((2, 2), 0.5), r"shape \(2, 2\)"),
    ],
)
def test_a_schedule_that_does_not_decrease_within_0_and_1_is_refused(alpha_bar: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(alpha_bar)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NoiseSchedule.linear(0), "steps=0"),
        (lambda: NoiseSchedule.cosine(-1), "steps=-1"),
        (lambda: NoiseSchedule.linear(beta_start=0.0), "beta_start=0.0"),
        (lambda: NoiseSchedule.linear(beta_end=1.0), "beta_end=1.0"),
        (lambda: NoiseSchedule.cosine(max_beta=2.0), "max_beta=2.0"),
    ],
)
def test_named_schedules_name_the_argument_that_is_out_of_range(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
