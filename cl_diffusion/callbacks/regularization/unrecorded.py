"""A pass over a foreign module that leaves nothing behind."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from cl_diffusion.callbacks.task import passing

_INTERNAL = frozenset(vars(LightningModule()))
Undo = list[Callable[[], None]]


@contextmanager
def unrecorded(trainer: Trainer, module: LightningModule, *, weights: bool = False) -> Iterator[None]:
    """Losses computed inside log nothing, and leave the module, the Trainer and the random states as they were.

    Put back are buffers, metrics, attributes of the module and its parts with what plain containers, tensors and arrays
    among them hold, the random states of Python, numpy and torch, and whether the Trainer should stop; no task ends,
    and ``log`` and the loggers say nothing meanwhile. What other objects keep inside themselves is not put back.

    Args:
        trainer: whose loggers are kept silent.
        module: that is passed over.
        weights: put parameters back too, as a ``training_step`` may change some by itself (a momentum encoder's); it
            takes room for one more copy of them.
    """
    loggers, stopping = trainer.loggers, trainer.should_stop
    undo = _kept(module, weights)
    trainer.loggers = [_Silent(logger) for logger in loggers]
    try:
        with isolate_rng(), passing(), _without_log(module):
            yield
    finally:
        trainer.loggers, trainer.should_stop = loggers, stopping
        for put_back in undo:
            put_back()


class _Silent(DummyLogger):
    """Says where another logger writes, and writes nothing."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger = logger

    @property
    @override
    def name(self) -> Any:
        return self.logger.name

    @property
    @override
    def version(self) -> Any:
        return self.logger.version

    @property
    @override
    def log_dir(self) -> str | None:
        return self.logger.log_dir

    @property
    @override
    def save_dir(self) -> str | None:
        return self.logger.save_dir


def _kept(module: nn.Module, weights: bool) -> Undo:
    seen: set[int] = set()
    undo: Undo = []
    for part in module.modules():
        undo += _kept_attributes(part, seen)
        undo += _kept_value(part._buffers, seen)
        if weights:
            undo += [step for parameter in part._parameters.values() for step in _kept_value(parameter, seen)]
    return undo


def _kept_attributes(part: nn.Module, seen: set[int]) -> Undo:
    """A metric keeps its state in attributes of its own making; of others, what is not torch's and Lightning's."""
    own = {key: value for key, value in vars(part).items() if key not in _INTERNAL}

    def put_back() -> None:
        for key in [key for key in vars(part) if key not in _INTERNAL and key not in own]:
            del vars(part)[key]
        vars(part).update(own)

    seen.add(id(part))
    return [put_back, *(step for value in own.values() for step in _kept_value(value, seen))]


def _kept_value(value: Any, seen: set[int]) -> Undo:
    """How to undo what may be changed within a value, containers before what they hold."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [_tensor(value)]
    if isinstance(value, np.ndarray):
        array = value.copy()
        return [lambda: np.copyto(value, array)]
    if isinstance(value, Metric):
        return _kept_attributes(value, seen)
    if type(value) in (dict, OrderedDict, defaultdict, Counter):
        items = dict(value)
        return [lambda: _refill(value, items), *(step for entry in items.values() for step in _kept_value(entry, seen))]
    if type(value) in (list, set, deque):
        entries = list(value)
        return [lambda: _refill(value, entries), *(step for entry in entries for step in _kept_value(entry, seen))]
    return []


def _tensor(value: Tensor) -> Callable[[], None]:
    saved = value.detach().clone()

    def put_back() -> None:
        with torch.no_grad():
            if not torch.equal(value, saved):
                value.detach().copy_(saved)

    return put_back


def _refill(container: Any, held: Any) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(held)
    else:
        container.update(held)


@contextmanager
def _without_log(module: nn.Module) -> Iterator[None]:
    speaking = [part for part in module.modules() if isinstance(part, LightningModule)]
    for part in speaking:
        part.__dict__["log"] = part.__dict__["log_dict"] = _silent
    try:
        yield
    finally:
        for part in speaking:
            del part.__dict__["log"], part.__dict__["log_dict"]


def _silent(*_: Any, **__: Any) -> None:
    """Instead of ``log`` and ``log_dict``."""
