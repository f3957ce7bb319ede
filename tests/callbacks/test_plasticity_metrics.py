"""What is in use of a network, task by task, and that looking changes nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from cl_diffusion.callbacks import PlasticityMetrics, ReDo, SelfNormalizedResets
from cl_diffusion.data import ChangingDataModule
from cl_diffusion.metrics.plasticity import effective_rank, stable_rank
from cl_diffusion.modules import OnlineClassifier
from cl_diffusion.modules.perceptron import Perceptron
from tests.callbacks.stranger import loader, trainer
from tests.callbacks.test_unit_resets import Rectified, same
from tests.tiny import ddpm


def rows(path: Path) -> dict[tuple[int, str, str], float]:
    with (path / "plasticity.csv").open(newline="") as file:
        return {(int(row["task"]), row["layer"], row["figure"]): float(row["value"]) for row in csv.DictReader(file)}


def test_dead_units_and_ranks_are_those_of_the_last_epoch(tmp_path: Path) -> None:
    model = Rectified(dead=(1, 4), optimizer=torch.optim.SGD)
    with torch.no_grad():
        model.net[0].bias[[0, 2, 3, 5, 6, 7]] = 50.0
    before, bias = model.net[0].weight.detach().clone(), model.net[0].bias.detach().clone()
    trainer(PlasticityMetrics(), max_epochs=1, default_root_dir=tmp_path).fit(model, loader(0, samples=8))
    found = rows(tmp_path)
    assert found[1, "net.0", "dead"] == 0.25
    features = (torch.cat([x for x, _ in loader(0, samples=8)]) @ before.T + bias).relu()
    assert found[1, "net.0", "effective_rank"] == pytest.approx(effective_rank(features), rel=1e-4)
    assert found[1, "net.0", "stable_rank"] == pytest.approx(stable_rank(features), rel=1e-4)
    change = (model.net[0].weight.detach() - before).double().square().mean().sqrt()
    assert found[1, "net.0", "update_norm"] == pytest.approx(float(change), rel=1e-5)
    size = model.net[0].weight.detach().double().square().mean().sqrt()
    assert found[1, "net.0", "weight_norm"] == pytest.approx(float(size), rel=1e-6)


def test_training_is_bit_for_bit_what_it_is_without(tmp_path: Path) -> None:
    models = []
    for callbacks in ([], [PlasticityMetrics(epochs_per_task=1)]):
        model = Rectified(optimizer=torch.optim.Adam)
        trainer(*callbacks, max_epochs=3, default_root_dir=tmp_path).fit(model, loader(0))
        models.append(model)
    assert same(*models)
    assert {task for task, _, _ in rows(tmp_path)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (PlasticityMetrics(epochs_per_task=2), {"max_epochs": 4}),
        (PlasticityMetrics(), {"max_epochs": -1, "max_steps": 6}),
        (PlasticityMetrics(), {"max_epochs": 9, "stop": 2}),
    ],
    ids=["epochs_per_task", "max_steps", "stopped early"],
)
def test_every_clock_has_all_figures(callback: PlasticityMetrics, options: dict[str, Any], tmp_path: Path) -> None:
    stop = options.pop("stop", None)

    class Stopping(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = stop is not None and trainer.current_epoch + 1 >= stop

    trainer(callback, Stopping(), default_root_dir=tmp_path, **options).fit(Rectified(), loader(0))
    figures = {"dead", "effective_rank", "stable_rank", "weight_norm", "update_norm"}
    found = rows(tmp_path)
    for task in {task for task, _, _ in found}:
        assert {figure for of, layer, figure in found if (of, layer) == (task, "net.0")} == figures
    assert {task for task, _, _ in found} == ({1, 2} if callback.epochs_per_task else {1})


def test_ranks_are_of_many_batches_and_updates_of_the_optimizer_alone(tmp_path: Path) -> None:
    found = []
    for number, order in enumerate((1, -1)):
        callbacks = [PlasticityMetrics(), ReDo(threshold=0.9, every_n_steps=3)][::order]
        folder = tmp_path / str(number)
        model = Rectified(optimizer=torch.optim.Adam)
        trainer(*callbacks, max_epochs=1, default_root_dir=folder).fit(model, loader(0, samples=17))  # the last has one
        found.append(rows(folder))
    assert found[0][1, "net.0", "effective_rank"] > 1.5
    assert found[0][1, "net.0", "update_norm"] == found[1][1, "net.0", "update_norm"] > 0


def test_what_is_not_a_number_has_no_rank_and_stops_nothing(tmp_path: Path) -> None:
    model = Rectified()
    with torch.no_grad():
        model.net[0].weight[0, 0] = torch.nan
    trainer(PlasticityMetrics(), max_epochs=1, default_root_dir=tmp_path).fit(model, loader(0))
    assert math.isnan(rows(tmp_path)[1, "net.0", "effective_rank"])


@pytest.mark.parametrize("step", [4, 14, 18, 20])
def test_figures_of_a_fit_that_was_broken_off_are_those_of_the_whole(step: int, tmp_path: Path) -> None:
    """Within the last epochs of the first two tasks, and outside of them."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = classified(tmp_path / "whole", PlasticityMetrics(), keep, enable_checkpointing=True)
    again = classified(tmp_path / "again", PlasticityMetrics(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert same(whole, again)
    assert (tmp_path / "whole/plasticity.csv").read_text() == (tmp_path / "again/plasticity.csv").read_text()


def test_a_network_without_units_has_the_figures_of_its_module(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no units are found in OnlineClassifier"):
        classified(tmp_path, PlasticityMetrics(), activation="crelu")
    assert {(layer, figure) for _, layer, figure in rows(tmp_path)} == {("", "online_accuracy")}
    with pytest.raises(ValueError, match="layers has 'network.1'"):
        classified(tmp_path, PlasticityMetrics(layers=["network.1"]), activation="crelu")


def classified(tmp_path: Path, *callbacks: Any, activation: Any = "relu", **options: Any) -> OnlineClassifier:
    torch.manual_seed(0)
    model = OnlineClassifier(Perceptron(64, 10, (12, 8), activation))
    data = ChangingDataModule("labels", num_tasks=3, epochs_per_task=2, batch_size=32, fraction=0.2)
    options = {"reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0, "default_root_dir": tmp_path, **options}
    ckpt = options.pop("ckpt_path", None)
    trainer(*callbacks, max_epochs=6, **options).fit(model, datamodule=data, ckpt_path=ckpt)
    return model


def test_a_stream_is_judged_as_it_comes_and_a_resumed_fit_goes_on_counting(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    resets = SelfNormalizedResets(initial_age=200, tasks_per_update=1)
    whole = classified(tmp_path / "whole", PlasticityMetrics(), resets, keep, enable_checkpointing=True)
    found = rows(tmp_path / "whole")
    assert {task for task, layer, _ in found if layer == ""} == {1, 2, 3}
    assert all(0 < found[task, "", "online_accuracy"] < 1 for task in (1, 2, 3))
    again = classified(
        tmp_path / "again",
        PlasticityMetrics(),
        SelfNormalizedResets(initial_age=200, tasks_per_update=1),
        ckpt_path=tmp_path / "epoch=2.ckpt",
    )
    assert same(whole, again)
    assert rows(tmp_path / "again") == found


def test_the_channels_of_a_diffusion_model_are_looked_at(tmp_path: Path) -> None:
    model: LightningModule = ddpm()
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))] * 2
    trainer(PlasticityMetrics(), max_epochs=1, default_root_dir=tmp_path).fit(
        model, torch.utils.data.DataLoader(batches, batch_size=None)
    )
    found = rows(tmp_path)
    layers = {layer for _, layer, _ in found}
    assert len(layers) == 8
    assert all(found[1, layer, "dead"] == 0 for layer in layers)
    assert all(found[1, layer, "effective_rank"] > 1 for layer in layers)
