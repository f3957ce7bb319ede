"""A pass over a foreign module that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from cl_diffusion.callbacks.task import passing


@contextmanager
def unrecorded(trainer: Trainer, module: LightningModule, *, copied: bool = False) -> Iterator[LightningModule]:
    """Losses computed inside log nothing, and leave the module, the Trainer and the random states as they were.

    Put back are the module's buffers and metrics, the random states of Python, numpy and torch, and whether the Trainer
    should stop; no task ends, and ``log`` and the loggers say nothing meanwhile.

    Args:
        trainer: whose loggers are kept silent.
        module: that is passed over.
        copied: yield a deep copy, for a ``training_step`` may change anything: weights of a momentum encoder,
            histories, a buffer of old samples. It takes the room of the module. Where it cannot be copied, the module
            itself is passed over, and a warning says so.

    Yields:
        What to pass over.
    """
    loggers, stopping = trainer.loggers, trainer.should_stop
    passed = _copy(trainer, module) if copied else module
    trainer.loggers = [_Silent(logger) for logger in loggers]
    try:
        with isolate_rng(), passing(), _as_it_was(passed), _without_log(passed):
            yield passed
    finally:
        trainer.loggers, trainer.should_stop = loggers, stopping


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


def _copy(trainer: Trainer, module: LightningModule) -> LightningModule:
    """Attributes that are results of a graph are copied without it, for torch does not copy them otherwise."""
    memo: dict[int, Any] = {id(trainer): trainer}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        twin = deepcopy(module, memo)
    except Exception as error:
        rank_zero_warn(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), so its training_step is "
            "asked for losses on the module itself: buffers and metrics are put back, but nothing else that it "
            "changes; add `def per_sample_loss(self, batch) -> Tensor` that returns one loss a sample, shape (B,)"
        )
        return module
    twin.trainer = trainer
    return twin


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Buffers, also replaced or new ones, and metrics."""
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    values = [(tensor, tensor.detach().clone()) for _, own in buffers for tensor in own.values() if tensor is not None]
    metrics = [(part, _copied(vars(part))) for part in module.modules() if isinstance(part, Metric)]
    try:
        yield
    finally:
        for part, own in buffers:
            part._buffers.clear()
            part._buffers.update(own)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for part, own in metrics:
            vars(part).clear()
            vars(part).update(own)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A metric's attributes with what they hold now: its states are tensors, or lists that it fills."""
    return {
        key: value.clone() if isinstance(value, Tensor) else copy(value) if isinstance(value, list) else value
        for key, value in state.items()
    }


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
