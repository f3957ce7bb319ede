from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from cl_diffusion.phases import TRAINING, PhaseClock, phase
from tests.callbacks.stranger import trainer
from tests.seconds import Seconds


def started() -> tuple[PhaseClock, Seconds]:
    seconds = Seconds()
    clock = PhaseClock(seconds)
    clock.start(1)
    return clock, seconds


def test_a_phase_within_another_suspends_it() -> None:
    clock, now = started()
    now.wait(1)
    with clock.phase("evaluation"):
        now.wait(2)
        with clock.phase("replay", task=2):
            now.wait(4)
            assert clock.current == (2, "replay")
        now.wait(8)
        assert clock.current == (1, "evaluation")
    now.wait(16)
    assert clock.seconds == {(1, TRAINING): 17, (1, "evaluation"): 10, (2, "replay"): 4}


Tree = st.recursive(st.just([]), lambda inner: st.lists(st.tuples(st.integers(0, 3), inner), max_size=3))


@given(Tree)
def test_parts_add_up_to_the_wall_time_however_they_are_nested(tree: Any) -> None:
    clock, now = started()

    def walk(tree: Any) -> None:
        for length, inner in tree:
            now.wait(length)
            with clock.phase(f"of {length}"):
                now.wait(length + 1)
                walk(inner)

    walk(tree)
    assert sum(clock.seconds.values()) == now.passed
    assert clock.current == (1, TRAINING)


def test_an_exception_leaves_what_is_outside_of_it_running() -> None:
    clock, now = started()

    def fail() -> None:
        now.wait(1)
        raise KeyError

    with pytest.raises(KeyError), clock.phase("evaluation"), clock.phase("replay"):
        fail()
    now.wait(2)
    assert clock.seconds == {(1, "evaluation"): 0, (1, "replay"): 1, (1, TRAINING): 2}


def test_a_clock_that_stands_still_counts_nothing() -> None:
    clock, now = started()
    with clock.phase("audit"):
        now.wait(1)
        clock.stop()
        now.wait(2)
    with clock.phase("audit"):
        now.wait(4)
    assert (clock.current, clock.seconds) == (None, {(1, TRAINING): 0, (1, "audit"): 1})
    clock.start(2)
    now.wait(8)
    assert clock.seconds[2, TRAINING] == 8


def test_every_change_is_told_and_in_between_no_more_than_one_a_second() -> None:
    clock, now = started()
    told: list[Any] = []
    clock.changed = lambda: told.append(clock.current)
    with clock.phase("audit"):
        for _ in range(10):
            now.wait(0.25)
            clock.tick()
    assert told == [(1, "audit")] * 3 + [(1, TRAINING)]


def test_a_phase_finds_the_clock_of_the_trainer_and_does_nothing_where_there_is_none() -> None:
    class Timed(Callback):
        def __init__(self) -> None:
            self.clock, self.now = started()

    timed = Timed()
    with phase(trainer(timed), "fisher", task=4):
        timed.now.wait(3)
    assert timed.clock.seconds == {(1, TRAINING): 0, (5, "fisher"): 3}
    for nobody in (trainer(), trainer(Callback()), None):
        with phase(nobody, "fisher"):
            pass
