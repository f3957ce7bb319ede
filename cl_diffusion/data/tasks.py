"""A data set's classes as an ordered list of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cl_diffusion.arguments import is_whole
from cl_diffusion.data.permutation import Purpose, keyed_permutation

ClassOrder = list[int] | Literal["shuffled"] | None


@dataclass(frozen=True)
class TaskSplit:
    """An ordered partition of the classes that take part: ``tasks[k]`` are the classes of task ``k``."""

    tasks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        available: Collection[int],
        *,
        tasks: Sequence[Sequence[int]] | None = None,
        classes_per_task: int | None = None,
        classes: Sequence[int] | None = None,
        class_order: ClassOrder = None,
        seed: int = 0,
    ) -> TaskSplit:
        """Deals the classes out to tasks, either as listed or so many a task.

        Args:
            available: the classes of the data set.
            tasks: the classes of each task, in order.
            classes_per_task: in place of ``tasks``, so many classes each (2 where neither is given).
            classes: the classes that take part; ``None`` is all of them. Their order here means nothing.
            class_order: with ``classes_per_task``, the order they are dealt in: ``None`` by label, a list, or
                ``"shuffled"`` by ``seed``.
            seed: of the shuffle.

        Raises:
            ValueError: if the arguments contradict each other, or do not put every class that takes part in one task.
        """
        check_task_arguments(tasks, classes_per_task, classes, class_order)
        for argument, labels in (("classes", classes or ()), ("tasks", [c for task in tasks or () for c in task])):
            if unknown := sorted(set(labels).difference(available)):
                raise ValueError(
                    f"{argument} names {unknown}, which the data set does not have: it has {sorted(available)}. "
                    "Name only those."
                )
        taking_part = sorted(available if classes is None else classes)
        if tasks is not None:
            return cls(_cover(tasks, taking_part))
        return cls(_deal(_order(taking_part, class_order, seed), classes_per_task))

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes that take part, in the order of the tasks."""
        return tuple(label for task in self.tasks for label in task)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self.tasks)

    def __getitem__(self, task: int) -> tuple[int, ...]:
        if not 0 <= task < len(self.tasks):
            raise IndexError(f"task={task}: expected 0 .. {len(self.tasks) - 1}, tasks are counted from 0")
        return self.tasks[task]


def check_task_arguments(
    tasks: Sequence[Sequence[int]] | None,
    classes_per_task: int | None,
    classes: Sequence[int] | None,
    class_order: ClassOrder,
) -> None:
    """Raises ``ValueError`` for what is wrong whatever the data set."""
    if tasks is not None:
        for name, value in (("classes_per_task", classes_per_task), ("class_order", class_order)):
            if value is not None:
                raise ValueError(f"tasks={tasks} and {name}={value!r} are both given: leave one of them out.")
        if not tasks or not all(tasks):
            raise ValueError(f"tasks={tasks}: expected at least one class in every task. Drop the empty ones.")
        _check_distinct("tasks", tasks, [label for task in tasks for label in task])
    if classes_per_task is not None and not is_whole(classes_per_task, 1):
        raise ValueError(f"classes_per_task={classes_per_task}: expected at least 1, a whole number.")
    if classes is not None:
        if not classes:
            raise ValueError("classes=[]: expected at least one class, or None for all of them.")
        _check_distinct("classes", classes, classes)
    if class_order not in (None, "shuffled") and isinstance(class_order, str):
        raise ValueError(f"class_order={class_order!r}: expected None, 'shuffled' or a list of classes.")


def _check_distinct(argument: str, value: object, labels: Sequence[int]) -> None:
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise ValueError(
            f"{argument}={value} names {repeated} more than once: a class belongs to one task. Name it once."
        )


def _cover(tasks: Sequence[Sequence[int]], taking_part: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    listed = {label for task in tasks for label in task}
    if missing := [label for label in taking_part if label not in listed]:
        raise ValueError(
            f"tasks={tasks} leaves {missing} in no task. "
            f"Add them to a task, or leave them out: classes={sorted(listed)}."
        )
    if extra := sorted(listed.difference(taking_part)):
        raise ValueError(
            f"tasks={tasks} names {extra}, which classes={list(taking_part)} leaves out. "
            "Add them to classes, or drop them."
        )
    return tuple(tuple(task) for task in tasks)


def _order(taking_part: Sequence[int], class_order: ClassOrder, seed: int) -> list[int]:
    if class_order is None:
        return list(taking_part)
    if isinstance(class_order, str):
        permutation = keyed_permutation(len(taking_part), seed, Purpose.CLASS_ORDER)
        return [taking_part[i] for i in permutation.tolist()]
    if sorted(class_order) != list(taking_part):
        raise ValueError(f"class_order={class_order}: expected each of {list(taking_part)} once.")
    return list(class_order)


def _deal(order: Sequence[int], classes_per_task: int | None) -> tuple[tuple[int, ...], ...]:
    size = 2 if classes_per_task is None else classes_per_task
    if len(order) % size:
        origin = " (the default)" if classes_per_task is None else ""
        raise ValueError(
            f"classes_per_task={size}{origin} does not divide the {len(order)} classes {sorted(order)}. "
            "Choose a divisor, select a multiple of it with classes, or list the tasks with tasks."
        )
    return tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
