"""Blocks of steps of a fit, timed in turns with something else, in the thread that the fit runs in."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class Enough(Exception):
    """All blocks are timed: what ends the fit."""


class BlocksOfSteps(Callback):
    """Times blocks of so many steps, from a batch's start to another's: loading, hooks, logging, an epoch's end.

    Before each block runs ``between``, and is timed too. The first block of each is not counted. After the last one the
    fit ends with ``Enough``; on a GPU another block is run, in which the host's waits for the device are counted.

    Args:
        first: the step that begins the first block.
        steps: of a block.
        rounds: blocks that are counted.
        between: run before each.

    Attributes:
        fit: wall and processor seconds of each counted block.
        other: those of ``between``.
        round_trips: of a step; None on a CPU.
    """

    def __init__(self, first: int, steps: int, rounds: int, between: Callable[[], object] | None = None) -> None:
        self.first, self.steps, self.rounds, self.between = first, steps, rounds, between
        self.fit: list[tuple[float, float]] = []
        self.other: list[tuple[float, float]] = []
        self.round_trips: float | None = None
        self._began: tuple[float, float] | None = None
        self._blocks = 0
        self._watch = contextlib.ExitStack()
        self._caught: list[Any] = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        taken = trainer.global_step - self.first
        if taken < 0 or taken % self.steps:
            return
        now = _clocks()
        if self._began is not None:
            self.fit.append(_since(self._began, now))
            self._blocks += 1
        if self._blocks > self.rounds:
            self._end(pl_module.device)
        if self.between is not None and self._blocks <= self.rounds:
            before = _clocks()
            self.between()
            self.other.append(_since(before, _clocks()))
        self._began = _clocks()

    def _end(self, device: torch.device) -> None:
        if device.type == "cuda" and self._blocks == self.rounds + 1:  # one more, which is looked at and not timed
            self._caught = self._watch.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            return
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            self._watch.close()
            self.round_trips = sum("synchronizing" in str(each.message) for each in self._caught) / self.steps
        self.fit, self.other = self.fit[1 : self.rounds + 1], self.other[1 : self.rounds + 1]
        raise Enough


def _clocks() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float], now: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]
