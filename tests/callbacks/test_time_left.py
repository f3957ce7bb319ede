from __future__ import annotations

import math

import pytest

from cl_diffusion.callbacks.time_left import Growth, growth, time_left
from cl_diffusion.phases import TRAINING, Part, spelled

BATCHES = 40
TASKS = 6
COST = {
    "fisher": lambda task: 3.0,
    "evaluation": lambda task: 2.0 * task,
    "replay": lambda task: 1.5 * (task - 1),
}
PACE = 0.5


def seconds_after(task: int) -> dict[Part, float]:
    """Of all tasks until this one has ended; what comes before the first does not come again."""
    parts: dict[Part, float] = {(0, "setup"): 100.0}
    for ended in range(1, task + 1):
        parts[ended, TRAINING] = PACE * BATCHES
        parts |= {(ended, name): cost(ended) for name, cost in COST.items()}
    return parts


@pytest.mark.parametrize("task", [3, 4, 6])
@pytest.mark.parametrize("trained", [0, 7, 30, 40])
@pytest.mark.parametrize("spent", [0.0, 0.5, 1.0], ids=lambda share: f"{share:.0%} of the boundary")
def test_what_has_grown_by_the_task_is_foretold_exactly(task: int, trained: int, spent: float) -> None:
    before = seconds_after(task - 1)
    now = {(task, TRAINING): PACE * trained, **{(task, name): spent * cost(task) for name, cost in COST.items()}}
    whole = sum(seconds_after(TASKS).values())
    batches = {**dict.fromkeys(range(1, task), BATCHES), task: trained}
    phases = growth(before, range(1, task))
    batches_left = BATCHES * (TASKS - task + 1) - trained
    left = time_left({**before, **now}, batches, phases, task, TASKS - task, batches_left)
    assert left == pytest.approx(whole - sum(before.values()) - sum(now.values()))


def test_a_task_that_trains_more_slowly_is_believed_after_a_few_batches() -> None:
    """As the second one of a stream with replay."""
    seconds = {(1, TRAINING): 40.0, (2, TRAINING): 19 * 2.0}
    assert time_left(seconds, {1: 40, 2: 19}, {}, 2, 0, 100) == 100
    seconds[2, TRAINING] += 2.0
    assert time_left(seconds, {1: 40, 2: 20}, {}, 2, 0, 100) == 200


def test_nothing_is_said_of_the_first_batches_and_of_a_fit_without_an_end() -> None:
    assert time_left({(1, TRAINING): 5.0}, {1: 3}, {}, 1, 0, 100) is None
    assert time_left({(1, TRAINING): 50.0}, {1: 30}, {}, 1, 0, math.inf) is None


def test_a_phase_that_took_longest_at_first_is_taken_as_it_was_last() -> None:
    """As a first pass that compiles."""
    assert Growth((1, 2, 3), (10.0, 4.0, 4.0)).left(4, spent=1.0, later=2) == 3 + 4 + 4


def test_a_phase_that_takes_longer_than_foretold_is_not_done_with_less() -> None:
    """The second task has shown by now that it grows by 2 seconds at least."""
    assert Growth((1,), (2.0,)).left(2, spent=4.0, later=2) == 6 + 8


def test_before_a_task_has_ended_no_phase_is_foretold() -> None:
    assert growth({(0, "setup"): 3.0, (1, "fisher"): 1.0}, []) == {}


@pytest.mark.parametrize(
    ("seconds", "parts", "words"),
    [
        (0.04, 2, "0 s"),
        (0.84, 2, "0.8 s"),
        (4.4, 1, "4 s"),
        (9.97, 2, "10 s"),
        (92.4, 2, "1 min 32 s"),
        (170, 1, "3 min"),
        (3599, 1, "1 h"),
        (3599.7, 2, "1 h"),
        (4830, 2, "1 h 20 min"),
        (4831, 1, "1 h"),
        (2 * 86400 + 3 * 3600 + 100, 2, "2 d 3 h"),
    ],
)
def test_durations_are_spelled_as_people_say_them(seconds: float, parts: int, words: str) -> None:
    assert spelled(seconds, parts) == words
