"""Weights pulled towards zero and towards a fresh initialisation, a little after every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from cl_diffusion.arguments import require_between, require_whole
from cl_diffusion.callbacks.plasticity.unit_resets import has_stepped
from cl_diffusion.callbacks.regularization.preconditions import refuse_sharded
from cl_diffusion.keys import derive_keys
from cl_diffusion.plasticity.reset import twin


class ShrinkAndPerturb(Callback):
    """``theta <- shrink * theta + perturb * theta_0``, ``theta_0`` a fresh initialisation, after every optimizer step.

    Ash & Adams 2020 (1910.08475), who do it once before each new data set; as done here it is that of the literature on
    plasticity. Fresh weights are those of each layer's own ``reset_parameters``, drawn on the CPU from the seed and the
    step: the same on every process, and in a resumed fit. A parameter whose layer has none is left as it is, one that
    several layers hold is taken once. ``shrink=1, perturb=0`` leaves training bit for bit as it is.

    Args:
        shrink: ``p``, in (0, 1].
        perturb: ``sigma``, >= 0.
        every_n_steps: of the optimizer.
        seed: of the fresh weights.

    Raises:
        ValueError: an argument is out of its range, or no layer can be drawn anew.
    """

    def __init__(self, shrink: float = 1 - 1e-4, perturb: float = 1e-3, every_n_steps: int = 1, seed: int = 0) -> None:
        require_between(math.nextafter(0, 1), 1, "a factor in (0, 1]", shrink=shrink)
        require_between(0, math.inf, "a factor >= 0", perturb=perturb)
        require_whole(1, every_n_steps=every_n_steps)
        require_whole(0, seed=seed)
        self.shrink, self.perturb, self.every_n_steps, self.seed = shrink, perturb, every_n_steps, seed
        self._layers: list[tuple[Any, list[tuple[Tensor, Tensor]]]] = []
        self._handles: list[RemovableHandle] = []
        self._stepped = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse_sharded(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers, left, taken = [], [], set[Tensor]()
        for name, layer in pl_module.named_modules():
            trained = layer.named_parameters(recurse=False)
            own = {key: p for key, p in trained if p.requires_grad and p not in taken}
            taken.update(own.values())
            if own and not hasattr(layer, "reset_parameters"):
                left += [f"{name}.{key}" for key in own]
            elif own:
                fresh: Any = twin(layer)
                self._layers.append((fresh, [(p, fresh.get_parameter(key)) for key, p in own.items()]))
        if not self._layers:
            raise ValueError(f"no layer of {type(pl_module).__name__} has a reset_parameters to draw fresh weights by")
        if left:
            rank_zero_warn(f"ShrinkAndPerturb leaves {', '.join(left)} as they are: no reset_parameters draws them")
        self._stepped = False
        self._handles = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._stepped:
            return
        self._stepped = False
        if trainer.global_step % self.every_n_steps or (self.shrink == 1 and self.perturb == 0):
            return
        key = derive_keys(self.seed, torch.tensor([trainer.global_step]), purpose="shrink and perturb")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(key) % 2**63)
            for layer, _ in self._layers:
                layer.reset_parameters()
            pairs = [pair for _, of in self._layers for pair in of]
            weights = [weight for weight, _ in pairs]
            torch._foreach_mul_(weights, self.shrink)
            torch._foreach_add_(weights, [new.to(weight) for weight, new in pairs], alpha=self.perturb)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped = self._stepped or has_stepped(optimizer)

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._layers = [], []
