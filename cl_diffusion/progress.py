"""Progress of the work between epochs, on whichever bar the trainer has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

Item = TypeVar("Item")


def track(trainer: Trainer, items: Iterable[Item], description: str) -> Iterable[Item]:
    """``items``, counted on the trainer's progress bar while they are iterated; every iteration is a new count."""
    bar: Any = trainer.progress_bar_callback
    return _Tracked(bar, items, description) if bar is not None and bar.is_enabled else items


class _Tracked(Iterable[Item]):
    def __init__(self, bar: Any, items: Iterable[Item], description: str) -> None:
        self._bar = bar
        self._items = items
        self._description = description

    def __iter__(self) -> Iterator[Item]:
        total = len(self._items) if isinstance(self._items, Sized) else None
        if isinstance(self._bar, RichProgressBar) and self._bar.progress is not None:
            return self._rich(total if total is not None else float("inf"))
        if isinstance(self._bar, TQDMProgressBar):
            return iter(Tqdm(self._items, desc=self._description, total=total, leave=False))
        return iter(self._items)

    def _rich(self, total: float) -> Iterator[Item]:
        progress = self._bar.progress
        task = progress.add_task(self._description, total=total)
        try:
            for item in self._items:
                yield item
                progress.update(task, advance=1)
                progress.refresh()
        finally:
            progress.remove_task(task)
