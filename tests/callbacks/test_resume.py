"""Stopped within a task and resumed: the uninterrupted run, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from cl_diffusion.callbacks import EWC, L2SP, MAS, L2Init, Regularizer, SynapticIntelligence, WarmUp
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, loader, trainer, weights

CLOCK = {"epochs_per_task": 2}
REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "diagonal": lambda: EWC(DiagonalFisher(), 2.0, **CLOCK),
    "rank one": lambda: EWC(MeanGradientFisher(), 2.0, **CLOCK),
    "rank one, separate": lambda: EWC(MeanGradientFisher(), 2.0, memory="separate", **CLOCK),
    "cut to rank one": lambda: EWC(MeanGradientFisher(), 2.0, max_rank=1, **CLOCK),
    "Kronecker": lambda: EWC(KroneckerFisher(), 2.0, **CLOCK),
    "online": lambda: EWC(DiagonalFisher(), 2.0, memory="online", gamma=0.5, **CLOCK),
    "proximal": lambda: EWC(MeanGradientFisher(), 1e5, mode="proximal", **CLOCK),
    "auto": lambda: EWC(MeanGradientFisher(), "auto", **CLOCK),
    "warm-up": lambda: EWC(DiagonalFisher(), WarmUp(5.0, steps=5), **CLOCK),
    "synaptic intelligence": lambda: SynapticIntelligence(2.0, **CLOCK),
    "mas": lambda: MAS(0.2, output=lambda module, batch: module.net(batch[0]), **CLOCK),
    "l2 sp": lambda: L2SP(0.2, **CLOCK),
    "l2 init": lambda: L2Init(0.2, **CLOCK),
}


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("stopped_after", [0, 2, 3, 4], ids=lambda epoch: f"epoch {epoch}")
def test_resumed_is_uninterrupted(kind: str, stopped_after: int, tmp_path: Path) -> None:
    """Six epochs, a task every two: stopped within the first and third task, and on the boundaries between."""

    def fit(*callbacks: Callback, **options: Any) -> tuple[Regression, Regularizer]:
        model, regularizer = Regression(torch.optim.Adam), REGULARIZERS[kind]()
        saving = bool(callbacks)
        trainer(regularizer, *callbacks, max_epochs=6, enable_checkpointing=saving).fit(model, loader(0), **options)
        return model, regularizer

    whole, remembered = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    checkpoint = tmp_path / f"epoch={stopped_after}.ckpt"
    torch.load(checkpoint, weights_only=True)
    resumed, again = fit(ckpt_path=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    for mine, theirs in zip(remembered.terms, again.terms, strict=True):
        assert torch.equal(mine.operator.trace(), theirs.operator.trace())
        assert all(torch.equal(mine.anchor[name], theirs.anchor[name]) for name in mine.anchor)


class Resumable:
    """Batches in an order of each epoch's own, that know how many of them were given: what Lightning can resume."""

    def __init__(self) -> None:
        self.batches = list(loader(0, samples=32))
        self.epoch, self.given, self.resumed = 0, 0, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        self.given = self.given if self.resumed else 0
        self.resumed = False
        order = torch.randperm(4, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for position in order[self.given :]:
            self.given += 1
            yield self.batches[position]
        self.epoch += 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.given, self.resumed = state["epoch"], state["given"], True


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("stopped_after", [2, 7, 18, 21], ids=lambda step: f"step {step}")
def test_resumed_within_an_epoch_is_uninterrupted_if_the_loader_resumes(
    kind: str, stopped_after: int, tmp_path: Path
) -> None:
    """Six epochs of four steps, a task every two epochs: stopped within epochs of the first and third task."""

    def fit(*callbacks: Callback, **options: Any) -> tuple[Regression, Regularizer]:
        model, regularizer = Regression(torch.optim.Adam), REGULARIZERS[kind]()
        saving = bool(callbacks)
        fitting = trainer(regularizer, *callbacks, max_epochs=6, enable_checkpointing=saving)
        fitting.fit(model, Resumable(), **options)
        return model, regularizer

    whole, remembered = fit(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1))
    resumed, again = fit(ckpt_path=tmp_path / f"step={stopped_after}.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    for mine, theirs in zip(remembered.terms, again.terms, strict=True):
        assert torch.equal(mine.operator.trace(), theirs.operator.trace())


def test_another_memory_is_not_loaded() -> None:
    ewc = EWC(DiagonalFisher(), memory="online")
    with pytest.raises(ValueError, match="memory='merged', but the checkpoint was made with memory='online'"):
        EWC(DiagonalFisher()).load_state_dict(ewc.state_dict())


@pytest.mark.parametrize("change", ["shape", "name"])
def test_a_parameter_that_changed_is_named_before_training(change: str) -> None:
    ewc, model = EWC(DiagonalFisher()), Regression()
    trainer(ewc).fit(model, loader(0))
    model.net[2] = torch.nn.Linear(4, 2) if change == "shape" else torch.nn.Sequential(torch.nn.Linear(4, 1))
    message = (
        "'net.2.weight' in shape \\(1, 4\\), and Regression has (it in shape \\(2, 4\\)|no such parameter).*exclude"
    )
    with pytest.raises(ValueError, match=message):
        trainer(ewc).fit(model, loader(1))
