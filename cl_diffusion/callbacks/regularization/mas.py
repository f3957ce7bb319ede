"""Memory Aware Synapses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from cl_diffusion.callbacks.regularization.estimated import EstimatedImportance
from cl_diffusion.callbacks.regularization.regularizer import Mode
from cl_diffusion.callbacks.regularization.strength import Strength
from cl_diffusion.fisher import OutputLoss, OutputSensitivity, SquaredOutput
from cl_diffusion.fisher.losses import Loss
from cl_diffusion.linalg import Memory


class MAS(EstimatedImportance):
    """Memory Aware Synapses (Aljundi et al. 2018, 1711.09601): ``F = 2 E | d |f(x)|^2 / d theta |``, a diagonal.

    How much each parameter moves the output, without looking at targets; absolute values of *per-sample* gradients,
    averaged over the task's samples. Importances add up over tasks and the newest weights are the anchor, as published
    (``memory="online"`` with ``gamma=1``).

    Args:
        strength: see ``Regularizer``; the factor 2 makes it the paper's lambda.
        output: ``(module, batch) -> f``, shape ``(B, ...)``. By default that of the module's ``output_loss``, where it
            has one, else ``module(*batch[:-1])``, a batch without its last part.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        seed: of the draws that the module makes of a batch.
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``).
        name: in the log and in checkpoints.
        mode: ``"gradient"`` or ``"proximal"``; see ``Regularizer``.
        memory: see ``Regularizer``.
        gamma: of the online memory.
    """

    def __init__(
        self,
        strength: float | Literal["auto"] | Strength = 1.0,
        output: Callable[[Any, Any], Tensor] | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
        epochs_per_task: int | None = None,
        name: str = "mas",
        mode: Mode = "gradient",
        memory: Memory = "online",
        gamma: float | None = None,
    ) -> None:
        sensitivity = OutputSensitivity(include=include, exclude=exclude)
        super().__init__(sensitivity, strength, name, epochs_per_task, seed=seed, mode=mode, memory=memory, gamma=gamma)
        self.output = output

    @override
    def loss(self, pl_module: LightningModule) -> Loss:
        offered = getattr(pl_module, "output_loss", None)
        if self.output is None and isinstance(offered, OutputLoss):
            return SquaredOutput(offered.output)
        return SquaredOutput() if self.output is None else SquaredOutput(self.output)
