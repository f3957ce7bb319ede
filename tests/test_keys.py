from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cl_diffusion.evaluation_mode import evaluation_mode
from cl_diffusion.keys import derive_keys, keyed_integers, keyed_normal, keyed_uniform


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=20, unique=True))
def test_a_key_belongs_to_its_sample_whatever_the_others_are(seed: int, indices: list[int]) -> None:
    together = derive_keys(seed, torch.tensor(indices))
    alone = torch.cat([derive_keys(seed, torch.tensor([index])) for index in indices])
    assert torch.equal(together, alone)
    assert len(set(together.tolist())) == len(indices)


def test_seeds_draws_and_indices_are_all_part_of_the_key() -> None:
    keys = [
        int(derive_keys(seed, torch.tensor([index]), draw))
        for seed in range(8)
        for index in range(8)
        for draw in range(-1, 7)
    ]
    assert len(set(keys)) == len(keys)


def test_without_a_purpose_the_keys_are_those_of_the_files_already_written() -> None:
    expected = torch.tensor([2558736989570252433, 3400964856525257824])
    assert torch.equal(derive_keys(0, torch.tensor([0, 1])), expected)
    assert torch.equal(derive_keys(0, torch.tensor([0, 1]), purpose=""), expected)


def test_the_purpose_is_part_of_the_key_beside_seed_draw_and_index() -> None:
    keys = [
        key
        for purpose in ("", "split", "label", "labels")
        for seed in range(4)
        for draw in range(-1, 4)
        for key in derive_keys(seed, torch.arange(8), draw, purpose).tolist()
    ]
    assert len(set(keys)) == len(keys)


def test_draws_for_two_purposes_are_uncorrelated() -> None:
    indices = torch.arange(4000)
    draws = [keyed_uniform(derive_keys(0, indices, purpose=purpose)) for purpose in ("", "split", "label")]
    correlations = torch.corrcoef(torch.stack(draws))
    torch.testing.assert_close(correlations, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.06)


def test_a_key_of_a_purpose_belongs_to_its_sample_whatever_the_others_are() -> None:
    together = derive_keys(3, torch.arange(5), 1, "split")
    alone = torch.cat([derive_keys(3, torch.tensor([index]), 1, "split") for index in (4, 0, 2)])
    assert torch.equal(together[[4, 0, 2]], alone)


def test_uniform_draws_fill_the_unit_interval_evenly_and_follow_their_key_alone() -> None:
    keys = derive_keys(0, torch.arange(4000), purpose="split")
    uniform = keyed_uniform(keys)
    assert (uniform.shape, uniform.dtype) == ((4000,), torch.float64)
    assert 0 <= float(uniform.min()) < 0.002
    assert 0.998 < float(uniform.max()) < 1
    empirical = torch.arange(1, 4001) / 4000
    assert float((uniform.sort().values - empirical).abs().max()) < 0.026
    assert len(uniform.unique()) == 4000
    torch.manual_seed(5)
    assert torch.equal(keyed_uniform(keys.flip(0)), uniform.flip(0))
    assert torch.equal(keyed_uniform(keys[7:9]), uniform[7:9])


def test_draws_follow_their_law_and_their_key_alone() -> None:
    keys = derive_keys(0, torch.arange(4000))
    normal, integers = keyed_normal(keys, (3, 2)), keyed_integers(keys, 10)
    assert normal.shape == (4000, 3, 2)
    assert abs(float(normal.mean())) < 0.02
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    assert float(normal[:, 0, 0] @ normal[:, 0, 1]) / 4000 == pytest.approx(0, abs=0.06)
    assert integers.bincount(minlength=10).min() > 320
    centred = integers.double() - integers.double().mean()
    assert float(centred @ normal[:, 0, 0].double()) / 4000 / float(centred.std()) == pytest.approx(0, abs=0.06)
    torch.manual_seed(5)
    assert torch.equal(keyed_normal(keys[7:9], (3, 2)), normal[7:9])
    assert torch.equal(keyed_integers(keys.flip(0), 10), integers.flip(0))


def test_evaluation_mode_gives_each_module_its_own_flag_back_also_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    module[1][0].eval()
    flags = [m.training for m in module.modules()]

    def fail() -> None:
        with evaluation_mode(module):
            assert not any(m.training for m in module.modules())
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        fail()
    assert [m.training for m in module.modules()] == flags
