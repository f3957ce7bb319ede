"""One kernel an optimizer step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override


class FusedOptimizer(Callback):
    """Lets the optimizers that have a fused step (Adam, AdamW, SGD, Adagrad) take it, whatever the model's options say.

    The choice is written into the parameter groups when training starts: behind a checkpoint's, which would replace an
    argument of the optimizer. In fp16 the scaler then divides the gradients itself before callbacks see them, which it
    leaves to an optimizer that was created with ``fused=True``.

    Groups that ask for a step that cannot be fused (``foreach``, ``differentiable``), or hold parameters that are not
    real numbers, are left alone. Sparse gradients have no fused step: leave the callback out.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                real = all(parameter.is_floating_point() for parameter in group["params"])
                if "fused" in group and real and not group.get("foreach") and not group.get("differentiable"):
                    _fuse(optimizer, group)


def _fuse(optimizer: Optimizer, group: dict[str, Any]) -> None:
    group["fused"] = True
    for parameter in group["params"]:
        step = optimizer.state.get(parameter, {}).get("step")
        if isinstance(step, Tensor):  # counted on the CPU by a checkpoint of another step
            optimizer.state[parameter]["step"] = step.to(parameter.device)
