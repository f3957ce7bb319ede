"""The matrix of a quality over tasks, as learning goes on, and what it says of forgetting."""

from __future__ import annotations

from dataclasses import dataclass, field

Entry = tuple[int, int]


@dataclass
class ContinualMatrix:
    """``R[after, task]``: a quality of the model after task ``after``, on task ``task``; both counted from 1.

    Only entries with ``task <= after`` enter the figures below. With ``T`` the newest ``after``:

    - ``average``: ``1/T sum_i R[T, i]`` (2509.23593, section 4.2: AFID where the quality is FID);
    - ``forgetting``: how much worse the old tasks have become since they were learned, positive is worse whatever the
      metric's sign: ``1/T sum_i (R[T, i] - R[i, i])`` where lower is better (2509.23593, section 4.2: the newest task
      enters with 0), the negative of it where higher is better;
    - ``backward_transfer``: ``1/(T-1) sum_{i<T} (R[T, i] - R[i, i])`` (Lopez-Paz & Ranzato 2017, eq. 3), signed so that
      positive is better whatever the metric.
    - ``retention``: ``1/(T-1) sum_{i<T} R[T, i]``, the tasks before the newest, now;
    - ``plasticity``: ``1/(T-1) sum_{i>1} R[i, i]``, the tasks after the first, each when it was learned. (Both are
      ``R[1, 1]`` of a single task.)

    Args:
        name: of the metric.
        higher_is_better: its direction.
        entries: what is known so far.

    Example:
        >>> agreement = ContinualMatrix("class_agreement", higher_is_better=True)
        >>> for after, task, value in [(1, 1, 1.0), (2, 1, 0.5), (2, 2, 0.75)]:
        ...     agreement.record(after, task, value)
        >>> agreement.average(), agreement.forgetting(), agreement.backward_transfer()
        (0.625, 0.25, -0.5)
    """

    name: str
    higher_is_better: bool
    entries: dict[Entry, float] = field(default_factory=dict)

    def record(self, after: int, task: int, value: float) -> None:
        """Enter ``R[after, task] = value``.

        Raises:
            ValueError: a count below 1.
        """
        if after < 1 or task < 1:
            raise ValueError(f"after={after}, task={task}; tasks are counted from 1")
        self.entries[after, task] = value

    @property
    def last(self) -> int:
        """``T``: the newest task after which the quality was measured.

        Raises:
            ValueError: nothing has been recorded.
        """
        if not self.entries:
            raise ValueError(f"{self.name!r} has no entry yet; record one first")
        return max(after for after, _ in self.entries)

    def average(self) -> float:
        """The mean over the tasks seen, now."""
        return _mean([self.entries[self.last, task] for task in self._seen()])

    def forgetting(self) -> float:
        """The mean loss of quality since each task was learned, over all tasks seen; positive is worse."""
        return _mean([-self._improvement(task) for task in self._seen()]) + 0.0  # no -0.0

    def backward_transfer(self) -> float:
        """The mean gain of quality since each task was learned, over the tasks before the newest; positive is better.

        NaN for a single task: it has no past.
        """
        past = [self._improvement(task) for task in self._seen() if task < self.last]
        return _mean(past) if past else float("nan")

    def retention(self) -> float:
        """The mean over the tasks before the newest, now."""
        seen = self._seen()
        return _mean([self.entries[self.last, task] for task in seen if task < self.last or seen == [task]])

    def plasticity(self) -> float:
        """The mean over the tasks after the first, each when it was learned."""
        seen = self._seen()
        return _mean([self.learned(task) for task in seen if task > 1 or seen == [task]])

    def _seen(self) -> list[int]:
        """The tasks known both when they were learned and now. A joint run learns all of them at the same time."""
        last = self.last
        seen = sorted(task for after, task in self.entries if after == last and task <= after)
        if not seen:
            raise ValueError(f"{self.name!r} after task {last} has later tasks alone; record one up to {last}, too")
        return seen

    def learned(self, task: int) -> float:
        """The quality on a task the first time it was measured after having been trained."""
        return self.entries[min(after for after, entry in self.entries if entry == task and after >= task), task]

    def _improvement(self, task: int) -> float:
        change = self.entries[self.last, task] - self.learned(task)
        return change if self.higher_is_better else -change


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
