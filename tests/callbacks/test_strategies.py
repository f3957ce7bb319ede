"""Several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, DistributedSampler

from cl_diffusion.callbacks import EWC, MAS, L2Init, Regularizer, SynapticIntelligence
from cl_diffusion.fisher import DiagonalFisher, MeanGradientFisher, SketchedDiagonalFisher
from tests.callbacks.stranger import Regression, loader, trainer, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


class Shared(Regression):
    """Three tasks in one fit; each process writes what it comes to."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of 8 in all, the same ones in the same order on any number of processes."""
        world = self.trainer.world_size
        data = loader(0).dataset
        sampler = DistributedSampler(data, world, self.global_rank, shuffle=False)
        return DataLoader(data, batch_size=8 // world, sampler=sampler)

    def on_train_end(self) -> None:
        (regularizer,) = (c for c in self.trainer.callbacks if isinstance(c, Regularizer))
        state = {
            "weights": weights(self),
            "traces": [float(term.operator.trace()) for term in regularizer.terms],
            "anchors": [dict(term.anchor) for term in regularizer.terms],
        }
        torch.save(state, self.folder / f"{self.global_rank}.pt")


REGULARIZERS: dict[str, Any] = {
    "diagonal": lambda: EWC(DiagonalFisher(), 2.0, epochs_per_task=2),
    "rank one": lambda: EWC(MeanGradientFisher(), 2.0, epochs_per_task=2),
    "proximal": lambda: EWC(DiagonalFisher(), 100.0, epochs_per_task=2, mode="proximal"),
    "synaptic intelligence": lambda: SynapticIntelligence(2.0, epochs_per_task=2),
    "mas": lambda: MAS(0.2, output=lambda module, batch: module.net(batch[0]), epochs_per_task=2),
    "l2 init": lambda: L2Init(0.2, epochs_per_task=2),
}


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    """Batches of 4 on each of two against batches of 8 on one; the samples divide evenly."""
    if torch.cuda.is_initialized():
        pytest.skip("cannot fork once CUDA is initialised")
    for devices, folder in ((2, tmp_path / "two"), (1, tmp_path / "one")):
        folder.mkdir()
        options: dict[str, Any] = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
        trainer(REGULARIZERS[kind](), max_epochs=6, use_distributed_sampler=False, **options).fit(Shared(folder))
    alone = torch.load(tmp_path / "one/0.pt")
    first, second = (torch.load(tmp_path / f"two/{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    for a, b in zip(first["anchors"], second["anchors"], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert first["traces"] == second["traces"] == pytest.approx(alone["traces"], rel=1e-3)
    for a, b in zip(first["weights"], alone["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("regularizer", [EWC(SketchedDiagonalFisher()), L2Init(), SynapticIntelligence()])
def test_strategies_that_wrap_the_module_are_refused_before_training(regularizer: Regularizer) -> None:
    fitting = trainer(regularizer)
    fitting._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="FSDPStrategy shards .* needs them whole.*use strategy='ddp'"):
        regularizer.setup(fitting, Regression(), "fit")


@pytest.mark.parametrize(
    ("regularizer", "named"),
    [
        (EWC(DiagonalFisher()), "diagonal of EWC takes gradients of single samples.*use SketchedDiagonalFisher"),
        (EWC(MeanGradientFisher()), "mean gradient, optimal coefficient of EWC"),
        (EWC(SketchedDiagonalFisher(), "auto"), "diagonal of EWC"),
        (MAS(output=lambda module, batch: module.net(batch[0])), "of MAS"),
        (SynapticIntelligence(), "SynapticIntelligence needs them whole"),
    ],
)
def test_shards_are_refused_where_they_will_not_do(regularizer: Regularizer, named: str) -> None:
    fitting = trainer(regularizer)
    fitting._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(ValueError, match=f"ModelParallelStrategy shards the parameters, and .*{named}"):
        regularizer.setup(fitting, Regression(), "fit")


def test_switched_off_it_minds_no_strategy() -> None:
    fitting = trainer()
    fitting._accelerator_connector.strategy = ModelParallelStrategy()
    EWC(DiagonalFisher(), 0.0).setup(fitting, Regression(), "fit")
    with pytest.raises(ValueError, match="shards the parameters"):
        EWC(DiagonalFisher(), 1e-9).setup(fitting, Regression(), "fit")
