"""The checkpoint that an audit is of, and the one of a later task that it is set beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cl_diffusion.checkpoint_files import plain_checkpoint
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.stream import TaskStream


def progress(trainer: Trainer) -> dict[str, Any]:
    """Epoch, step, place and kind of weights of the checkpoint that is tested; nothing where there is none."""
    if trainer.ckpt_path is None:
        return {}
    checkpoint = plain_checkpoint(Path(trainer.ckpt_path))
    return {
        **{name: checkpoint[name] for name in ("epoch", "global_step")},
        "checkpoint": str(trainer.ckpt_path),
        "weights": _kind(checkpoint),
    }


def learned(stream: TaskStream, task: int | None, at: dict[str, Any]) -> int:
    """Which task a checkpoint has learned last, from 0: as given, from 1, or by its epoch.

    Raises:
        ValueError: neither is known, or the stream has no such task.
    """
    if task is None and "epoch" not in at:
        raise ValueError("task=None, and there is no checkpoint whose epoch would say which task was learned last")
    found = min(stream.task_at(at["epoch"]), stream.num_tasks - 1) if task is None else task - 1
    if not 0 <= found < stream.num_tasks:
        raise ValueError(f"task={found + 1}; expected one of the stream's, 1 to {stream.num_tasks}")
    return int(found)


def displacement(module: LightningModule, later: str, at: dict[str, Any]) -> Parameters:
    """From the module's parameters to those of a checkpoint.

    Warns where that has taken fewer steps, or where buffers (a batch norm's statistics) have moved too: those stay.

    Args:
        module: with the weights of the audited checkpoint.
        later: the other one.
        at: ``progress`` of the audited one.

    Raises:
        ValueError: the weights are the very same, or another model's.
    """
    checkpoint = plain_checkpoint(Path(later), "later")
    weights = parameters.trainable_parameters(module)
    there = checkpoint["state_dict"]
    if differing := [name for name, w in weights.items() if name not in there or there[name].shape != w.shape]:
        shape = tuple(there[differing[0]].shape) if differing[0] in there else "not there"
        raise ValueError(
            f"later={later!r}: parameter {differing[0]!r} is {shape}, and {tuple(weights[differing[0]].shape)} in the "
            "audited model; give a checkpoint of the same model"
        )
    moved = {name: there[name].to(w) - w.detach() for name, w in weights.items()}
    if not any(bool(each.any()) for each in moved.values()):
        raise ValueError(f"later={later!r} has the very weights of the audited checkpoint; give that of a later task")
    steps, before = checkpoint.get("global_step"), at.get("global_step")
    if steps is not None and before is not None and steps < before:
        rank_zero_warn(
            f"later={later!r} has taken {steps} steps and the audited checkpoint {before}: unless it began from that "
            "one's weights, it is an earlier one"
        )
    if "weights" in at and at["weights"] != (kind := _kind(checkpoint)):
        rank_zero_warn(f"later={later!r} has {kind} weights and the audited checkpoint {at['weights']} ones")
    buffers = {name: checkpoint["state_dict"].get(name) for name, _ in module.named_buffers()}
    differ = [n for n, b in module.named_buffers() if (new := buffers[n]) is not None and not torch.equal(new.to(b), b)]
    if differ:
        rank_zero_warn(
            f"{differ[0]!r} and {len(differ) - 1} other buffers differ in later={later!r}; they stay as here"
        )
    return moved


def _kind(checkpoint: dict[str, Any]) -> str:
    """Whether its weights are raw: Lightning's weight averaging keeps those beside the average."""
    return "averaged" if "current_model_state" in checkpoint else "raw"
