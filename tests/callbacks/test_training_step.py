"""A project that has only a ``training_step``."""

from __future__ import annotations

import csv
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, MeanSquaredError

from cl_diffusion.callbacks import EWC, MAS
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher
from tests.callbacks.stranger import Regression, fit_tasks, weights

SIZES: list[int] = []


class OnlyTrains(LightningModule):
    """Logs, keeps a metric, a buffer, lists, a slow copy of itself, and returns a dict, as training steps do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.error = MeanSquaredError()
        self.register_buffer("steps", torch.zeros(()))
        self.sizes: list[int] = []
        self.last: dict[str, int] = {}
        self.calls = 0
        self.slow = nn.Linear(3, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        prediction = self.net(x)
        loss = nn.functional.mse_loss(prediction, y)
        self.error.update(prediction.detach(), y)
        self.steps += 1
        self.sizes.append(len(x))
        SIZES.append(len(x))
        self.last["size"] = len(x)
        self.calls += 1
        self.slow.weight.data.lerp_(self.net[0].weight.data, 0.1)
        if self.logger is not None:
            self.logger.log_metrics({"by_hand": float(random.random() + np.random.rand())}, step=self.calls)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"error": self.error}, on_step=False, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_it_is_asked_for_batches_of_one_and_told_what_that_costs() -> None:
    SIZES.clear()
    model, ewc = OnlyTrains(), EWC(DiagonalFisher())
    with pytest.warns(UserWarning, match="OnlyTrains has no `per_sample_loss`.*batches of one: 24 of them.*add `def"):
        fit_tasks(model, ewc, tasks=(0,))
    assert SIZES.count(1) >= 24


def test_the_importance_is_that_of_the_loss_of_each_sample() -> None:
    with pytest.warns(UserWarning, match="has no `per_sample_loss`"):
        model = fit_tasks(OnlyTrains(), ewc := EWC(DiagonalFisher()), tasks=(0,))
    told = fit_tasks(Regression(), known := EWC(DiagonalFisher()), tasks=(0,))
    assert all(torch.equal(a, b) for a, b in zip(weights(model.net), weights(told.net), strict=True))
    torch.testing.assert_close(ewc.terms[0].operator.diagonal(), known.terms[0].operator.diagonal())


def test_nothing_of_the_project_shows_the_pass(tmp_path: Path) -> None:
    logs, models = [], []
    for callbacks in ([EWC(DiagonalFisher(), 1.0)], []):
        random.seed(0)
        np.random.seed(0)
        model, log = OnlyTrains(), CSVLogger(tmp_path / str(len(callbacks)))
        fit_tasks(model, *callbacks, tasks=(0,), logger=log, log_every_n_steps=1)
        rows = list(csv.DictReader((Path(log.log_dir) / "metrics.csv").open()))
        logs.append([{k: v for k, v in row.items() if "ewc" not in k} for row in rows if row["step"]])
        assert model.steps == 6
        assert (model.sizes, model.last, model.calls) == ([8] * 6, {"size": 8}, 6)
        models.append(model)
        assert "log" not in vars(model)
        assert isinstance(model.error, MeanSquaredError)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))
    own = [row for row in logs[0] if any(v for k, v in row.items() if k not in ("step", "epoch"))]
    assert own == [row for row in logs[1] if any(v for k, v in row.items() if k not in ("step", "epoch"))]


class ByHand(OnlyTrains):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimisation_has_no_loss_to_ask_for() -> None:
    with pytest.raises(TypeError, match="ByHand has no `per_sample_loss`, and its `training_step` optimises by itself"):
        fit_tasks(ByHand(), EWC(DiagonalFisher()))


class Silent(OnlyTrains):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if len(batch[0]) == 1 else super().training_step(batch, batch_idx)


def test_a_step_without_a_loss_is_refused_before_a_task_is_trained() -> None:
    model = Silent()
    before = weights(model)
    with pytest.raises(ValueError, match="Silent.training_step returned None for one sample; expected its loss"):
        fit_tasks(model, EWC(DiagonalFisher()))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


class BatchLoss(Regression):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return super().per_sample_loss(batch).mean()


@pytest.mark.parametrize(
    ("model", "regularizer", "message"),
    [
        (BatchLoss(), EWC(DiagonalFisher()), "expected \\(8,\\), one entry a sample"),
        (OnlyTrains(), EWC(KroneckerFisher()), "KroneckerFisher reads"),
        (OnlyTrains(), EWC(DiagonalFisher(residual="model")), "OnlyTrains has no `output_loss`"),
        (Regression(), MAS(), "forward"),
    ],
    ids=["scalar", "layers", "output", "forward"],
)
@pytest.mark.filterwarnings("ignore:.*has no `per_sample_loss`")
def test_what_does_not_fit_is_refused_before_a_task_is_trained(model: Any, regularizer: Any, message: str) -> None:
    before = weights(model)
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=message):
        fit_tasks(model, regularizer)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


class Logging(Regression):
    def per_sample_loss(self, batch: Any) -> Tensor:
        losses = super().per_sample_loss(batch)
        self.log("inside", losses.mean())
        return losses


class Hoarder(Regression):
    """Changes whatever a training step can reach, and stops when a single sample goes well."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0] = nn.Sequential(self.net[0])
        self.history: dict[str, list[float]] = {"loss": []}
        self.array = np.zeros(1)
        self.count = torch.zeros(1)
        self.queue = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.errors = {"train": MeanSquaredError()}
        self.register_buffer("seen", torch.zeros(0))
        self.last_loss: Tensor | None = None

    per_sample_loss = None  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.history["loss"].append(float(loss))
        self.array += 1
        self.count += 1
        self.seen = torch.cat([self.seen, loss.detach()[None]])
        self.errors["train"].update(self.net(x).detach(), y)
        self.last_loss = loss  # with its graph
        if len(x) == 1:
            self.trainer.should_stop = True
            self.made_up = 1
            if self.clock is not None:
                self.clock.end_task(self.trainer)
        assert self.logger is None or self.logger.log_dir
        return loss

    clock: Any = None


@pytest.mark.filterwarnings("ignore:.*has no `per_sample_loss`")
def test_nothing_that_a_step_can_reach_shows_the_pass(tmp_path: Path) -> None:
    found = []
    for callbacks in ([EWC(DiagonalFisher(), 1e-30)], []):
        model = Hoarder()
        model.clock = callbacks[0] if callbacks else None
        fit_tasks(model, *callbacks, logger=CSVLogger(tmp_path / str(len(callbacks))))
        assert not hasattr(model, "made_up")
        total = model.errors["train"].total
        found.append([model.history, model.array, model.count, model.seen, total])
        for callback in callbacks:
            assert [term.operator.provenance.record[0]["samples"] for term in callback.terms] == [24]
            assert callback.state_dict()["tasks_ended"] == 2
    assert repr(found[0]) == repr(found[1])


@pytest.mark.filterwarnings("ignore:.*has no `per_sample_loss`")
@pytest.mark.parametrize("kind", ["compiled", "closure", "hook", "locked"])
def test_a_training_step_that_reaches_the_module_by_other_ways_is_asked_all_the_same(kind: str) -> None:
    """By what a copy would not have: functions that hold the module itself."""
    model: Any = OnlyTrains()
    if kind == "compiled":
        model.net[0] = torch.compile(model.net[0], backend="eager")
    elif kind == "closure":
        forward = model.net[0].forward
        model.net[0].forward = lambda x: forward(x)
    elif kind == "hook":
        model.net[0].register_forward_hook(lambda module, args, output: setattr(model, "features", output))
    else:
        model.lock = threading.Lock()
    fit_tasks(model, ewc := EWC(DiagonalFisher()), tasks=(0,))
    fit_tasks(OnlyTrains(), plain := EWC(DiagonalFisher()), tasks=(0,))
    torch.testing.assert_close(ewc.terms[0].operator.trace(), plain.terms[0].operator.trace())
    assert model.steps == 6


def test_what_a_loss_of_each_sample_appends_is_taken_back() -> None:
    class Appending(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.outs: list[Tensor] = []
            self.register_buffer("mask", torch.ones(1, 3).expand(8, 3))

        def per_sample_loss(self, batch: Any) -> Tensor:
            losses = super().per_sample_loss(batch)
            self.outs.append(losses.detach())
            return losses

    model = Appending()
    fit_tasks(model, EWC(DiagonalFisher()), tasks=(0,))
    assert len(model.outs) == 6


def test_metrics_that_a_loss_of_each_sample_updates_are_put_back() -> None:
    class Measuring(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.mean = MeanMetric()
            self.losses = CatMetric()

        def per_sample_loss(self, batch: Any) -> Tensor:
            losses = super().per_sample_loss(batch)
            self.mean.update(losses.detach())
            self.losses.update(losses.detach())
            return losses

    measured = []
    for callbacks in ([EWC(DiagonalFisher(), 1e-30)], []):
        model = fit_tasks(Measuring(), *callbacks, tasks=(0,))
        measured.append((float(model.mean.weight), float(model.mean.compute()), len(model.losses.compute())))
    assert measured[0] == measured[1]


def test_a_loss_of_each_sample_may_log() -> None:
    ewc = EWC(DiagonalFisher())
    fit_tasks(Logging(), ewc, tasks=(0,))
    assert float(ewc.terms[0].operator.trace()) > 0
