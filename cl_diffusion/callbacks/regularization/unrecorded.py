"""A pass over a foreign module that leaves nothing behind."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

_INTERNAL = frozenset(vars(LightningModule()))


@contextmanager
def unrecorded(trainer: Trainer, module: LightningModule, *, weights: bool = False) -> Iterator[None]:
    """Losses computed inside log nothing, and leave the module and the random states as they were.

    Put back: buffers, metrics, own attributes of the module and its parts (counters; plain lists, dicts and sets with
    what they hold), the random states of Python, numpy and torch; ``log`` and the loggers say nothing meanwhile.

    Args:
        trainer: whose loggers are kept silent.
        module: that is passed over.
        weights: put parameters back too, as a ``training_step`` may change some by itself (a momentum encoder's); it
            takes room for one more copy of them.
    """
    tensors = [*module.named_buffers(), *(module.named_parameters() if weights else ())]
    kept = {name: tensor.detach().clone() for name, tensor in tensors}
    children = [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
    metrics = [(parent, name, child) for parent, name, child in children if isinstance(child, Metric)]
    attributes = [(part, key, *_copied(value)) for part in _parts(module) for key, value in _own(part)]
    speaking = [part for part in module.modules() if isinstance(part, LightningModule)]
    loggers = trainer.loggers
    for parent, name, child in metrics:
        setattr(parent, name, child.clone())
    for part in speaking:
        part.__dict__["log"] = part.__dict__["log_dict"] = _silent
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        with isolate_rng():
            yield
    finally:
        trainer.loggers = loggers
        for part in speaking:
            del part.__dict__["log"], part.__dict__["log_dict"]
        for parent, name, child in metrics:
            setattr(parent, name, child)
        for owner, key, value, held in attributes:
            vars(owner)[key] = value
            _restore(value, held)
        _put_back([*module.named_buffers(), *(module.named_parameters() if weights else ())], kept)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if not isinstance(part, Metric))


def _own(part: nn.Module) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in vars(part).items() if key not in _INTERNAL]


def _copied(value: Any) -> tuple[Any, Any]:
    """The value, and what it holds if it is a plain container, which may change."""
    if type(value) in (dict, OrderedDict, defaultdict, Counter):
        return value, dict(value)
    if type(value) in (list, set, deque):
        return value, list(value)
    return value, None


def _restore(value: Any, held: Any) -> None:
    if held is None:
        return
    value.clear()
    if isinstance(value, (list, deque)):
        value.extend(held)
    else:
        value.update(held)


@torch.no_grad()
def _put_back(tensors: Iterable[tuple[str, Tensor]], kept: dict[str, Tensor]) -> None:
    for name, tensor in tensors:
        if name in kept and not torch.equal(tensor, kept[name]):
            tensor.copy_(kept[name])


def _silent(*_: Any, **__: Any) -> None:
    """Instead of ``log`` and ``log_dict``."""
