"""Progress of the work between epochs, and of the whole, on whichever bar the trainer has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.progress import Progress
from rich.text import Text

from cl_diffusion.phases import phase_clock

Item = TypeVar("Item")


def track(trainer: Trainer, items: Iterable[Item], description: str) -> Iterable[Item]:
    """``items``, counted on the trainer's progress bar while they are iterated; every iteration is a new count."""
    bar: Any = trainer.progress_bar_callback
    return _Tracked(trainer, items, description) if bar is not None and bar.is_enabled else items


def show_status(trainer: Trainer, status: str) -> None:
    """A line above the bar of a ``RichProgressBar``, or the words in front of that of a ``TQDMProgressBar``.

    It stays until the next one; an empty one takes it away. On other bars, or before there is one, nothing is shown.
    """
    bar: Any = trainer.progress_bar_callback
    if bar is None or not bar.is_enabled:
        return
    if isinstance(bar, RichProgressBar) and bar.progress is not None:
        _put_above(bar.progress, status)
        bar.refresh()
    elif isinstance(bar, TQDMProgressBar) and bar._train_progress_bar is not None:
        bar.train_progress_bar.bar_format = f"{status} · {bar.BAR_FORMAT}" if status else bar.BAR_FORMAT
        bar.train_progress_bar.refresh()


def _put_above(progress: Progress, status: str) -> None:
    lines = [Text(status, no_wrap=True, overflow="ellipsis")] if status else []
    shown: Any = progress
    shown.get_renderables = lambda: (*lines, *type(progress).get_renderables(progress))


class _Tracked(Iterable[Item]):
    def __init__(self, trainer: Trainer, items: Iterable[Item], description: str) -> None:
        self._bar: Any = trainer.progress_bar_callback
        self._clock = phase_clock(trainer)
        self._items = items
        self._description = description

    def __iter__(self) -> Iterator[Item]:
        total = len(self._items) if isinstance(self._items, Sized) else None
        if isinstance(self._bar, RichProgressBar) and self._bar.progress is not None:
            return self._rich(total if total is not None else float("inf"))
        if isinstance(self._bar, TQDMProgressBar):
            return iter(Tqdm(self._ticking(), desc=self._description, total=total, leave=False))
        return iter(self._items)

    def _rich(self, total: float) -> Iterator[Item]:
        progress = self._bar.progress
        task = progress.add_task(self._description, total=total)
        try:
            for item in self._ticking():
                yield item
                progress.update(task, advance=1)
                progress.refresh()
        finally:
            progress.remove_task(task)

    def _ticking(self) -> Iterator[Item]:
        for item in self._items:
            yield item
            if self._clock is not None:
                self._clock.tick()
