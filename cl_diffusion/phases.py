"""What the time of a fit goes to: phases, one within another, each with the time that is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from lightning.pytorch import Trainer

TRAINING = "training"
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
Part = tuple[int, str]
"""A task, counted from 1 (0 is what comes before the first), and the phase."""


class PhaseClock:
    """The seconds of each task's phases; a phase within another suspends it, so that they add up to the wall time.

    What lies outside of all phases belongs to the part that ``start`` has named. It only reads the host's clock and
    waits for no device: on a GPU, whose work is asynchronous, seconds are counted where the host waits for it.

    Args:
        now: seconds that never go back.
    """

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self.changed: Callable[[], None] | None = None
        self._now = now
        self._seconds: dict[Part, float] = {}
        self._open: list[Part] = []
        self._since = self._told = 0.0

    @property
    def current(self) -> Part | None:
        """What the time goes to now; None while the clock stands still."""
        return self._open[-1] if self._open else None

    @property
    def seconds(self) -> dict[Part, float]:
        """Of each part, until now."""
        self._settle()
        return dict(self._seconds)

    def load(self, seconds: dict[Part, float]) -> None:
        """Go on from there; what was counted before is forgotten."""
        self._settle()
        self._seconds = dict(seconds)

    def start(self, task: int, name: str = TRAINING) -> None:
        """From now on, what lies outside of all phases belongs to this part."""
        self._settle()
        self._open[:1] = [(task, name)]
        self._tell()

    def stop(self) -> None:
        """Stand still until ``start``; phases that are open are left."""
        self._settle()
        self._open = []

    @contextmanager
    def phase(self, name: str, task: int | None = None) -> Iterator[None]:
        """What is done within is of this phase, and of this task where it is not the running one's.

        Nothing where the clock stands still.
        """
        if not self._open:
            yield
            return
        self._settle()
        depth = len(self._open)
        self._open.append((self._open[-1][0] if task is None else task, name))
        try:
            self._tell()
            yield
        finally:
            if len(self._open) > depth:
                self._settle()
                del self._open[depth:]
                self._tell()

    def tick(self) -> None:
        """Call ``changed`` if the last time is a second ago."""
        if self._now() - self._told >= 1:
            self._tell()

    def _settle(self) -> None:
        now = self._now()
        if self._open:
            part = self._open[-1]
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    def _tell(self) -> None:
        self._told = self._now()
        if self.changed is not None:
            self.changed()


def phase_clock(trainer: Trainer | None) -> PhaseClock | None:
    """That of the trainer's callback which has one, as its ``clock``."""
    clocks = (getattr(callback, "clock", None) for callback in getattr(trainer, "callbacks", ()))
    return next((clock for clock in clocks if isinstance(clock, PhaseClock)), None)


@contextmanager
def phase(trainer: Trainer | None, name: str, task: int | None = None) -> Iterator[None]:
    """What is done within is counted as this phase, where a callback of the trainer counts; else nothing.

    Args:
        trainer: that fits, if any.
        name: of the phase, as people read it.
        task: whose cost it is, counted from 0; None is the running one.
    """
    clock = phase_clock(trainer)
    if clock is None:
        yield
        return
    with clock.phase(name, None if task is None else task + 1):
        yield


def spelled(seconds: float, parts: int = 2) -> str:
    """In the largest unit that fits and, where there are two ``parts``, the next: ``1 min 32 s``."""
    if seconds < 9.95:
        return f"{round(seconds, parts - 1):g} s"
    first = next(position for position, (size, _) in enumerate(UNITS) if size <= seconds)
    smallest = UNITS[min(first + parts, len(UNITS)) - 1][0]
    left, words = round(seconds / smallest) * smallest, []
    for size, name in UNITS:
        count, left = divmod(left, size)
        if count:
            words.append(f"{count:.0f} {name}")
    return " ".join(words)
