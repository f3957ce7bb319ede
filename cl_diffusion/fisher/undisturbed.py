"""A model as an estimator passes over it, and as it was found afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cl_diffusion.evaluation_mode import evaluation_mode
from cl_diffusion.fisher.sharded import resharded
from cl_diffusion.linalg import parameters


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """No part of a model is run compiled (``nn.Module.compile``) inside: a pass differentiates as such code cannot."""
    compiled = [(part, part._compiled_call_impl) for part in model.modules() if part._compiled_call_impl is not None]
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled:
            part._compiled_call_impl = call


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Parameter]:
    """Evaluation mode, gradients allowed, no autocast, torch's random state put back; yields the first parameter.

    Raises:
        ValueError: the model has nothing to differentiate by.
    """
    if not parameters.trainable_parameters(model):
        raise ValueError(f"model={type(model).__name__} has no parameter that requires a gradient; unfreeze some")
    first = next(iter(model.parameters()))
    devices = [first.device] if first.device.type == "cuda" else []
    with (
        resharded(model),
        as_written(model),
        evaluation_mode(model),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.autocast(first.device.type, enabled=False),
    ):
        yield first
