"""A task that was audited, kept until the next is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from cl_diffusion.callbacks.diagnostics.audit_record import AuditRecord
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.metrics.support import direction_determined


@dataclass(frozen=True)
class AuditedTask:
    """What a task's damage is told from, on the CPU.

    Attributes:
        task: from 0.
        weights: the trainable parameters as they were audited.
        buffers: the module's, of then.
        directions: that the audit has found, by name.
        determined: whether the samples determine each of them.
    """

    task: int
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    directions: dict[str, dict[str, Tensor]]
    determined: dict[str, bool]

    @classmethod
    def of(
        cls, module: LightningModule, task: int, record: AuditRecord, directions: dict[str, Parameters]
    ) -> AuditedTask:
        """Of a module at its current weights, which may move after."""
        weights = parameters.trainable_parameters(module)
        return cls(
            task,
            {name: weight.detach().cpu().clone() for name, weight in weights.items()},
            {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers()},
            {name: {key: part.cpu() for key, part in direction.items()} for name, direction in directions.items()},
            determined_of(record, directions),
        )

    def before(self, module: LightningModule) -> Parameters | None:
        """The audited weights as parameters of the module; None where others are trained by now."""
        now = parameters.trainable_parameters(module)
        if now.keys() != self.weights.keys():
            return None
        return {name: self.weights[name].to(weight) for name, weight in now.items()}

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, as its arguments."""
        return dict(vars(self))


def determined_of(record: AuditRecord, directions: dict[str, Parameters]) -> dict[str, bool]:
    """By direction, whether the samples of an audit determine it."""
    return {name: direction_determined(record.figures, name) for name in directions}
