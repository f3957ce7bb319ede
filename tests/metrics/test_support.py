"""What an audit's samples support, and what it says of steps and damage."""

from __future__ import annotations

import pytest

from cl_diffusion.metrics.gradient_audit import ALL
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.metrics.support import determined, direction_determined, supported
from cl_diffusion.metrics.verdict import verdict_of_damage, verdict_of_steps

SURE, UNSURE, NONE = Estimate(0.9, 0.02, 64), Estimate(0.9, 0.3, 64), Estimate(0.1, 0.05, 64)


def test_a_direction_is_determined_where_halves_agree_with_the_whole_interval() -> None:
    assert [determined(each) for each in (SURE, UNSURE, NONE)] == [True, None, False]
    assert determined(Estimate(0.55, 0.05, 64)) is None  # down to .45
    assert determined(Estimate(0.9, 0.02, 16)) is None  # of too few samples


@pytest.mark.parametrize(
    ("name", "rests_on"),
    [
        ("v_other_corrected", ["v_itself", "v_other_itself"]),
        ("mu_noise", ["mu_itself", "mu_noise_itself"]),
        ("iewc_v_other_corrected", ["iewc_v_itself", "iewc_v_other_itself"]),
        ("mu_to_v", ["mu_itself", "v_itself"]),
        ("true_to_empirical", ["v_itself", "true_itself"]),
        ("remainder_sine", ["v_itself", "remainder_itself"]),
        ("leading_share", []),
        ("v_itself", []),
    ],
)
def test_a_comparison_is_supported_where_every_direction_of_it_is_determined(name: str, rests_on: list[str]) -> None:
    of = {name: SURE, **dict.fromkeys(rests_on, SURE)}
    assert supported({"low": of}, "low", name)
    assert not supported({"low": {**of, name: UNSURE}}, "low", name)
    for itself in rests_on:
        for other in (UNSURE, NONE):
            assert not supported({"low": {**of, itself: other}}, "low", name)


def test_what_is_beside_another_band_rests_on_that_band_s_direction_too() -> None:
    figures = {band: {"v_itself": SURE, "mu_itself": SURE} for band in ("low", "high", ALL)}
    figures["low"] |= {"mu_with high": SURE, "v_to_all": SURE, "held_of_all": SURE, "mu_to_all": SURE}
    assert all(supported(figures, "low", name) for name in figures["low"])
    figures["high"]["mu_itself"] = figures[ALL]["v_itself"] = UNSURE
    known = {name: supported(figures, "low", name) for name in figures["low"]}
    assert [name for name, known in known.items() if not known] == ["mu_with high", "v_to_all", "held_of_all"]


def test_directions_are_looked_up_by_their_names() -> None:
    figures = {ALL: {"v_itself": SURE, "mu_itself": UNSURE, "v_other_itself": SURE, "true_itself": NONE}}
    names = ["v, all", "mu, all", "v of other, all", "v of true, all"]
    assert [direction_determined(figures, name) for name in names] == [True, False, True, False]


def test_fishers_that_keep_their_word_are_said_to_and_others_not() -> None:
    of = {
        "loss/ratio/0.06": Estimate(0.99, 0.01, 64),
        "each_loss/ratio/0.06": Estimate(1.6, 0.05, 64),
        "each_loss/ratio/0.6": Estimate(9.0, 1.0, 64),
        "loss/ratio/2": Estimate(0.5, 0.02, 64),
        "each_loss/ratio/2": Estimate(12.0, 20.0, 64),
    }
    [said] = verdict_of_steps({"low": of})
    assert "steps of 0.06: the mean loss by the true Fisher keeps its word (0.99" in said
    assert "each by the empirical says too little (1.6" in said
    assert "steps of 2: the mean loss by the true Fisher says too much" in said
    assert "each by the empirical cannot be told (12" in said
    assert "0.6:" not in said
    assert verdict_of_steps({}) == []


def test_damage_is_told_along_directions_that_are_supported_alone() -> None:
    of = {"loss": SURE, "loss_along v, all": SURE, "loss_without v, all": NONE}
    [said] = verdict_of_damage({ALL: of}, 3)
    assert said.startswith("damage to task 3: the loss changed by 0.9 [0.86, 0.94]; along v, all alone by 0.9")
    assert said.endswith("along mu, all: not told by these samples.")
    assert verdict_of_damage({ALL: {}}, 3) == ["damage to task 3: too few samples to tell."]
