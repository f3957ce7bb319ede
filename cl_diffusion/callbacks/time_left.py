"""How long a stream of tasks will take, from how long it has taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cl_diffusion.phases import TRAINING, Part

ENOUGH = 20
"""Batches by which a task's pace is known."""


@dataclass(frozen=True)
class Growth:
    """What a phase takes as a line over tasks: it goes through the last one's, with the slope of least squares.

    What is measured on all old tasks, or drawn of them, grows with their number. A line that would fall is level.

    Args:
        tasks: that have ended, counted from 1.
        took: the seconds of each.
    """

    tasks: tuple[int, ...]
    took: tuple[float, ...]

    @cached_property
    def slope(self) -> float:
        """Seconds more with each task; 0 where one alone is known."""
        middle = sum(self.tasks) / len(self.tasks)
        spread = sum((task - middle) ** 2 for task in self.tasks)
        rise = sum((task - middle) * took for task, took in zip(self.tasks, self.took, strict=True))
        return max(0.0, rise / spread) if spread else 0.0

    def left(self, task: int, spent: float, later: int) -> float:
        """The seconds of the running task that are not spent yet, and those of the tasks after it.

        Where more is spent than the line says, the running task is taken as one that has ended.
        """
        here = self.took[-1] + self.slope * (task - self.tasks[-1])
        if spent > here:
            return Growth((*self.tasks, task), (*self.took, spent)).left(task, spent, later)
        return here - spent + later * here + self.slope * later * (later + 1) / 2


def growth(seconds: Mapping[Part, float], ended: Iterable[int]) -> dict[str, Growth]:
    """Of each phase but training; of none where no task has ended.

    Args:
        seconds: of each part.
        ended: tasks, counted from 1, in order.
    """
    tasks = tuple(ended)
    names = {name: None for _, name in seconds if name != TRAINING} if tasks else {}
    return {name: Growth(tasks, tuple(seconds.get((task, name), 0.0) for task in tasks)) for name in names}


def time_left(
    seconds: Mapping[Part, float],
    batches: Mapping[int, int],
    phases: Mapping[str, Growth],
    task: int,
    later: int,
    batches_left: float,
) -> float | None:
    """The seconds that are left, or None where nothing is known of them yet.

    Training takes ``batches_left`` times the running task's seconds a batch, those of the task before until the running
    one has had 20; each other phase takes what its ``Growth`` says. It is too little before two tasks have ended: after
    none, it is training alone; after one, nothing is known of how phases grow.

    Args:
        seconds: of each part.
        batches: that were trained of each task.
        phases: of the tasks that have ended.
        task: that is running, counted from 1.
        later: tasks after it.
        batches_left: of all of them.
    """
    known = task if batches.get(task, 0) >= ENOUGH else task - 1
    if not batches.get(known, 0) or not math.isfinite(batches_left):
        return None
    pace = seconds.get((known, TRAINING), 0.0) / batches[known]
    beside = sum(each.left(task, seconds.get((task, name), 0.0), later) for name, each in phases.items())
    return pace * batches_left + beside
