from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_diffusion.data import TaskSplit


@given(data=st.data(), size=st.integers(1, 4), tasks=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_tasks_partition_the_classes_that_take_part(data: st.DataObject, size: int, tasks: int, seed: int) -> None:
    classes = data.draw(st.lists(st.integers(0, 30), min_size=size * tasks, max_size=size * tasks, unique=True))
    order = data.draw(st.one_of(st.none(), st.just("shuffled"), st.permutations(classes)))
    split = TaskSplit.of(range(31), classes_per_task=size, classes=classes, class_order=order, seed=seed)
    assert len(split) == tasks
    assert all(len(task) == size for task in split)
    assert sorted(split.classes) == sorted(classes)


def test_classes_are_dealt_in_the_order_asked_for() -> None:
    assert TaskSplit.of(range(6)).tasks == ((0, 1), (2, 3), (4, 5))
    assert TaskSplit.of(range(10), classes=[3, 1, 0, 2]).tasks == ((0, 1), (2, 3))
    assert TaskSplit.of(range(4), classes_per_task=1, class_order=[2, 0, 3, 1]).tasks == ((2,), (0,), (3,), (1,))
    assert TaskSplit.of(range(4), tasks=[[3], [1, 0, 2]]).tasks == ((3,), (1, 0, 2))


def test_a_shuffle_depends_on_the_seed_alone() -> None:
    orders = [TaskSplit.of(range(10), class_order="shuffled", seed=seed).classes for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": [[0, 1], [1, 2, 3]]}, r"tasks=.* names \[1\] more than once.*Name it once"),
        ({"tasks": [[0, 1], [2]]}, r"tasks=.* leaves \[3\] in no task.*classes=\[0, 1, 2\]"),
        ({"tasks": [[0, 1], [2, 3, 7]]}, r"tasks names \[7\].*it has \[0, 1, 2, 3\]"),
        ({"tasks": [[0], [1]], "classes": [0]}, r"names \[1\], which classes=\[0\] leaves out"),
        ({"tasks": [[0, 1, 2, 3], []]}, r"tasks=\[\[0, 1, 2, 3\], \[\]\]: expected at least one class in every task"),
        ({"tasks": []}, r"tasks=\[\]: expected"),
        ({"classes_per_task": 3}, r"classes_per_task=3 does not divide the 4 classes \[0, 1, 2, 3\].*Choose a divisor"),
        ({"classes": [0, 1, 2]}, r"classes_per_task=2 \(the default\) does not divide the 3"),
        ({"classes_per_task": 0}, r"classes_per_task=0: expected at least 1"),
        (
            {"tasks": [[0, 1, 2, 3]], "classes_per_task": 2},
            r"tasks=.* and classes_per_task=2 are both given: leave one",
        ),
        ({"tasks": [[0, 1, 2, 3]], "class_order": "shuffled"}, r"tasks=.* and class_order='shuffled' are both given"),
        ({"classes": [0, 9]}, r"classes names \[9\].*it has \[0, 1, 2, 3\]"),
        ({"classes": [0, 0]}, r"classes=\[0, 0\] names \[0\] more than once"),
        ({"classes": []}, r"classes=\[\]: expected at least one class"),
        ({"class_order": [0, 1, 2]}, r"class_order=\[0, 1, 2\]: expected each of \[0, 1, 2, 3\] once"),
        ({"class_order": "random"}, r"class_order='random': expected None, 'shuffled' or a list"),
    ],
)
def test_what_is_no_partition_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSplit.of(range(4), **arguments)


def test_tasks_are_counted_from_0_to_the_last() -> None:
    split = TaskSplit.of(range(4))
    for task in (-1, 2):
        with pytest.raises(IndexError, match=rf"task={task}: expected 0 .. 1"):
            split[task]
