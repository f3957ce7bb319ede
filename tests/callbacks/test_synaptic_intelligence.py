"""The path integral sees the task's gradient alone, and the whole way."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from cl_diffusion.callbacks import EWC, L2Init, Regularizer, SynapticIntelligence
from cl_diffusion.fisher import DiagonalFisher
from tests.callbacks.stranger import Regression, fit_tasks


class ByHand(Callback):
    """``-sum g dtheta``, of gradients taken before any regulariser acts and weights after the batch."""

    def __init__(self, intelligence: SynapticIntelligence, scale: float) -> None:
        self.intelligence = intelligence
        self.scale = scale
        self.path: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.gradient = {name: p.grad.clone() / self.scale for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        for name, p in pl_module.named_parameters():
            share = -self.gradient[name] * (p.detach() - self.before[name])
            self.path[name] = self.path.get(name, torch.zeros_like(share)) + share
        assert self.intelligence._path is not None
        self.found = {name: tensor.clone() for name, tensor in self.intelligence._path.path.items()}


def others(kind: str) -> list[Regularizer]:
    return {
        "alone": lambda: [],
        "EWC": lambda: [EWC(DiagonalFisher(), 5.0)],
        "proximal EWC": lambda: [EWC(DiagonalFisher(), 50.0, mode="proximal")],
        "L2-init": lambda: [L2Init(0.5)],
    }[kind]()


@pytest.mark.parametrize("kind", ["alone", "EWC", "proximal EWC", "L2-init"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed, fused"])
def test_no_penalty_is_in_the_gradient_and_every_move_is_in_the_way(kind: str, last: bool, precision: str) -> None:
    intelligence = SynapticIntelligence(5.0)
    regularizers = others(kind)
    regularizers.insert(len(regularizers) if last else 0, intelligence)
    fused = precision != "32-true"
    model = Regression(partial(torch.optim.SGD, fused=fused))
    fit_tasks(model, *regularizers, tasks=(0,))
    assert intelligence.terms
    by_hand = ByHand(intelligence, 256.0 if fused else 1.0)
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))] if fused else []
    fit_tasks(model, by_hand, *regularizers, tasks=(1,), plugins=plugins)
    for name, expected in by_hand.path.items():
        torch.testing.assert_close(by_hand.found[name], expected, rtol=1e-4, atol=1e-7)
