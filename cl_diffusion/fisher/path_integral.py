"""Importance as a parameter's share of the loss's decrease along the path of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_diffusion.linalg import Diagonal, Parameters, Provenance, parameters


class PathIntegral:
    """``F = 2 max(w, 0) / ((theta_end - theta_start)^2 + xi)``, ``w = -sum_steps g * dtheta`` (Zenke et al. 2017).

    ``w`` sums, over its entries, to the decrease of the loss up to terms of second order in the step; so ``F`` is in
    units of loss over squared parameter, like a curvature. The factor 2 is there because a penalty is ``lambda/2 d^T F
    d`` here, and ``c Omega d^2`` in the paper (1703.04200, eq. 4-5).

    Args:
        start: the parameters at the task's start.
        damping: ``xi`` > 0, in squared units of a parameter.

    Raises:
        ValueError: ``damping`` is not positive.
    """

    def __init__(self, start: Mapping[str, Tensor], damping: float) -> None:
        if not 0 < damping < float("inf"):
            raise ValueError(f"damping={damping!r}; expected a finite number > 0")
        self.damping = damping
        self.start = parameters.clone(start)
        self.path: Parameters = {
            name: torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in self.start.items()
        }
        self._before: tuple[Parameters, Parameters] | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What makes two of them comparable."""
        return {"estimator": "synaptic intelligence", "damping": f"{self.damping:g}"}

    def before_step(self, gradients: Mapping[str, Tensor], theta: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Keep the task loss's own gradient, given ``scale`` times too large, and the weights that the step leaves."""
        names = [name for name in gradients if name in self.path]
        kept = {name: gradients[name].detach().to(self.path[name].dtype, copy=True).div_(scale) for name in names}
        self._before = kept, parameters.clone(parameters.select(theta, names))

    def after_step(self, theta: Mapping[str, Tensor]) -> None:
        """``w -= g * dtheta``, for the step since ``before_step``."""
        if self._before is None:
            return
        gradients, before = self._before
        self._before = None
        if not gradients:
            return
        moved = torch._foreach_sub([theta[name].detach() for name in before], list(before.values()))
        torch._foreach_addcmul_([self.path[name] for name in before], list(gradients.values()), moved, value=-1.0)

    def operator(self, theta: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> Diagonal:
        """``F`` at the end of the task.

        Raises:
            FloatingPointError: the path of a parameter is not finite.
        """
        values = {}
        for name, path in self.path.items():
            if not bool(path.isfinite().all()):
                raise FloatingPointError(
                    f"the path integral of parameter {name!r} is not finite: a gradient or a weight was not, in a step "
                    "of this task; check whether training has diverged, or a batch held a value that is not finite"
                )
            moved = theta[name].detach() - self.start[name]
            values[name] = 2 * path.clamp(min=0) / (moved.to(path.dtype).square() + self.damping)
        return Diagonal(values, Provenance(self.identity, (dict(record or {}),)))

    def to(self, device: torch.device) -> None:
        """Move the sums to another device."""
        self.start = {name: tensor.to(device) for name, tensor in self.start.items()}
        self.path = {name: tensor.to(device) for name, tensor in self.path.items()}

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        path = parameters.clone(self.path)  # which goes on
        return {"start": self.start, "path": path, "damping": self.damping}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PathIntegral:
        """The inverse of ``state``."""
        restored = cls(state["start"], state["damping"])
        restored.path = dict(state["path"])
        return restored
