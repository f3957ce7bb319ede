from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from cl_diffusion.data import KeyedSampler, ResumableLoader


@given(length=st.integers(1, 40), replicas=st.integers(1, 5), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_the_shares_of_all_processes_wrap_one_permutation(length: int, replicas: int, seed: int, epoch: int) -> None:
    whole = list(KeyedSampler(range(length), seed, epoch))
    shares = [list(KeyedSampler(range(length), seed, epoch, replicas, rank)) for rank in range(replicas)]
    assert sorted(whole) == list(range(length))
    assert {len(share) for share in shares} == {-(-length // replicas)}
    interleaved = [index for entries in zip(*shares, strict=True) for index in entries]
    assert interleaved == [whole[i % length] for i in range(len(interleaved))]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {}
    for seed in range(3):
        for epoch in range(3):
            torch.manual_seed(torch.seed())
            orders[seed, epoch] = tuple(KeyedSampler(range(50), seed, epoch))
            moved = KeyedSampler(range(50), seed)
            moved.set_epoch(epoch)
            assert tuple(moved) == orders[seed, epoch]
    assert len(set(orders.values())) == 9


def loader(epoch: int = 0) -> ResumableLoader:
    dataset = TensorDataset(torch.arange(10))
    return ResumableLoader(dataset, batch_size=3, sampler=KeyedSampler(dataset, seed=5, epoch=epoch))


def contents(batches: object) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_a_loader_continues_where_its_state_was_taken(seen: int) -> None:
    interrupted, resumed = loader(), loader()
    batches = iter(interrupted)
    for _ in range(seen):
        next(batches)
    resumed.load_state_dict(interrupted.state_dict())
    assert contents(resumed) == contents(loader())[seen:]
    assert resumed.state_dict()["batches"] == 0
    resumed.sampler.set_epoch(1)
    assert contents(resumed) == contents(loader(epoch=1))


def test_a_state_leaves_other_epochs_whole() -> None:
    limited, following = loader(), loader(epoch=1)
    next(iter(limited))
    following.load_state_dict(limited.state_dict())
    assert contents(following) == contents(loader(epoch=1))


def test_creating_an_iterator_has_no_side_effect() -> None:
    once, twice = loader(), loader()
    iter(twice)
    before = torch.get_rng_state()
    second = iter(twice)
    assert torch.equal(torch.get_rng_state(), before)
    assert contents(second) == contents(once)
