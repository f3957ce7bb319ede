from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.data.images import ImageFormat
from cl_diffusion.data.labelled import StoredImages
from cl_diffusion.data.selection import Samples


def samples(*counts: int) -> Samples:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    return Samples.of(StoredImages(pixels, shuffled, len(counts), ImageFormat()), range(len(counts)), "training")


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=4), fraction=st.floats(0.01, 0.6), seed=st.integers(0, 9)
)
def test_held_out_and_training_samples_partition_each_class(counts: list[int], fraction: float, seed: int) -> None:
    everything = samples(*counts)
    training, held_out = everything.hold_out(fraction, seed)
    for label, count in enumerate(counts):
        parts = [part.by_class[label].tolist() for part in (training, held_out)]
        assert sorted(parts[0] + parts[1]) == everything.by_class[label].tolist()
        assert len(parts[1]) == max(1, round(fraction * count))
        assert everything.images.labels[parts[0] + parts[1]].eq(label).all()


def test_what_is_held_out_depends_on_the_seed() -> None:
    held_out = [samples(50).hold_out(0.2, seed)[1].indices([0]).tolist() for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_each_class_is_held_out_by_a_draw_of_its_own() -> None:
    everything = samples(50, 50)
    _, held_out = everything.hold_out(0.2, seed=0)
    ranks = [torch.isin(everything.by_class[label], held_out.by_class[label]).tolist() for label in (0, 1)]
    assert ranks[0] != ranks[1]


def test_a_smaller_fraction_is_part_of_a_larger_one() -> None:
    small, large, whole = (samples(20, 40).reduce(fraction, seed=0) for fraction in (0.2, 0.5, 1.0))
    assert [len(part.by_class[1]) for part in (small, large, whole)] == [8, 20, 40]
    assert (
        set(small.indices([0, 1]).tolist()) < set(large.indices([0, 1]).tolist()) < set(whole.indices([0, 1]).tolist())
    )


def test_a_task_s_samples_are_limited_together() -> None:
    everything = samples(20, 40, 10)
    small, large, whole = (everything.limit([(0, 1), (2,)], count, seed=0) for count in (12, 30, 1000))
    for part, count in ((small, 12), (large, 30), (whole, 60)):
        assert len(part.indices([0, 1])) == count
        assert len(part.indices([2])) == min(count, 10)
    assert set(small.indices([0, 1]).tolist()) < set(large.indices([0, 1]).tolist())
    assert everything.limit([(1, 0), (2,)], 12, seed=0).indices([0, 1]).equal(small.indices([0, 1]))
    assert not everything.limit([(0, 1), (2,)], 12, seed=1).indices([0, 1]).equal(small.indices([0, 1]))
    with pytest.raises(ValueError, match="training_samples=1 a task leaves class"):
        everything.limit([(0, 1), (2,)], 1, seed=0)


def test_the_indices_of_several_classes_ascend() -> None:
    indices = samples(9, 9).indices([1, 0])
    assert indices.tolist() == list(range(18))


def test_a_class_left_with_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction=0.01 leaves class 0, of 9 images, with none. Raise it"):
        samples(9, 90).reduce(0.01, seed=0)
    with pytest.raises(ValueError, match=r"holdout=0.5 leaves class 1, of 1 images, with none to train on. Lower it"):
        samples(9, 1).hold_out(0.5, seed=0)
    with pytest.raises(ValueError, match=r"classes: \[5\] have no held-out images. Leave them out"):
        Samples.of(samples(9).images, [0, 5], "held-out")
