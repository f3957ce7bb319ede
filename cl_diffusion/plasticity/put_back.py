"""A forward pass that leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def put_back(module: nn.Module) -> Iterator[None]:
    """Whatever runs within: afterwards attributes and buffers of the module, and random states, are what they were.

    Attributes that are bound anew are put back; an object that is changed in place, other than a buffer, stays changed.
    """
    attributes = [(part, dict(vars(part))) for part in module.modules()]
    tables = [
        (part, {name: dict(vars(part)[name]) for name in ("_parameters", "_buffers", "_modules")})
        for part in module.modules()
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = list({t.device for t in [*module.parameters(), *module.buffers()] if t.device.type == "cuda"})
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        for part, held in attributes:
            vars(part).clear()
            vars(part).update(held)
        for part, entries in tables:
            for name, held in entries.items():
                table = vars(part)[name]
                table.clear()
                table.update(held)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
