"""What is logged of a penalty, through the user's own logger."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger

from cl_diffusion.callbacks import EWC
from cl_diffusion.fisher import DiagonalFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, fit_tasks, weights
from tests.callbacks.test_gradient_mode import ManuallyOptimised


def rows(log: CSVLogger) -> list[dict[str, float]]:
    with (Path(log.log_dir) / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


class Watching(Callback):
    """The task's gradient and the weights, as they are before the penalty."""

    def __init__(self, ewc: EWC) -> None:
        self.ewc = ewc
        self.expected: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.ewc.terms:
            return
        task = torch.cat([p.grad.flatten() for p in pl_module.parameters()]).double()
        theta = {name: p.detach() for name, p in pl_module.named_parameters()}
        gradients = [term.gradient(theta) for term in self.ewc.terms]
        penalty = 3.0 * torch.cat([sum(g[name].double() for g in gradients).flatten() for name in theta])  # type: ignore[union-attr]
        moved = [
            torch.cat([d.flatten() for d in t.displacement(theta).values()]).double().norm() for t in self.ewc.terms
        ]
        self.expected.append(
            {
                "penalty": 3.0 * sum(float(term.value(theta)) for term in self.ewc.terms),
                "gradient_ratio": float(penalty.norm() / task.norm()),
                "cosine": float(penalty @ task / (penalty.norm() * task.norm())),
                **{f"displacement{f'_{i + 1}' if len(moved) > 1 else ''}": float(d) for i, d in enumerate(moved)},
            }
        )


@pytest.mark.parametrize(
    "ewc",
    [EWC(DiagonalFisher(), 3.0), EWC(MeanGradientFisher(), 3.0, memory="separate"), EWC(MeanGradientFisher(), 3.0)],
    ids=["merged diagonal", "separate rank ones", "stacked rank ones"],
)
def test_penalty_ratio_cosine_and_displacements(ewc: EWC, tmp_path: Path) -> None:
    fit_tasks(Regression(), ewc)
    watching, log = Watching(ewc), CSVLogger(tmp_path)
    fit_tasks(Regression(), watching, ewc, tasks=(2,), logger=log, log_every_n_steps=1)
    logged = [row for row in rows(log) if "ewc/penalty" in row]
    assert len(logged) == len(watching.expected) == 6
    for found, expected in zip(logged, watching.expected, strict=True):
        assert {key: found[f"ewc/{key}"] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found["ewc/strength"] == 3.0


def test_figures_come_as_often_as_the_trainer_logs_and_change_nothing(tmp_path: Path) -> None:
    found = []
    for every in (1, 3, 50):
        model, log = Regression(), CSVLogger(tmp_path / str(every))
        fit_tasks(model, EWC(DiagonalFisher(), 3.0), tasks=(0,), logger=False)
        fit_tasks(model, ewc := EWC(DiagonalFisher(), 3.0), tasks=(0, 1), logger=log, log_every_n_steps=every)
        assert ewc.terms
        found.append((weights(model), sum("ewc/penalty" in row for row in rows(log))))
    assert [count for _, count in found] == [6, 2, 0]
    for other, _ in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][0], other, strict=True))


def test_each_of_several_optimizers_has_its_own_ratio(tmp_path: Path) -> None:
    log = CSVLogger(tmp_path)
    model, ewc = ManuallyOptimised(), EWC(DiagonalFisher(), 3.0)
    fit_tasks(model, ewc, tasks=(0,))
    fit_tasks(model, ewc, tasks=(1,), logger=log, log_every_n_steps=1)
    row = next(row for row in rows(log) if "ewc/penalty" in row)
    assert {"ewc/gradient_ratio/optimizer_1", "ewc/cosine/optimizer_2"} <= row.keys()
    assert "ewc/gradient_ratio" not in row


def test_two_regularisers_log_under_their_names_and_see_the_task_without_each_other(tmp_path: Path) -> None:
    log = CSVLogger(tmp_path)
    model, alone = Regression(), Regression()
    pair = [EWC(DiagonalFisher(), 3.0, name="one"), EWC(DiagonalFisher(), 3.0, name="two")]
    fit_tasks(model, *pair, tasks=(0,))
    fit_tasks(alone, single := EWC(DiagonalFisher(), 6.0, name="single"), tasks=(0,))
    fit_tasks(model, *pair, tasks=(1,), logger=log, log_every_n_steps=1)
    fit_tasks(alone, single, tasks=(1,))
    row = [row for row in rows(log) if "one/penalty" in row][-1]
    assert row["one/gradient_ratio"] == row["two/gradient_ratio"]
    for a, b in zip(weights(model), weights(alone), strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_is_unscaled_in_the_figures(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    found = []
    for fused in (False, True):
        log = CSVLogger(tmp_path / str(fused))
        model, ewc = Regression(torch.optim.SGD, fused=fused), EWC(DiagonalFisher(), 3.0)
        fit_tasks(model, ewc, tasks=(0,))
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
        fit_tasks(model, ewc, tasks=(1,), logger=log, log_every_n_steps=1, plugins=[plugin])
        found.append([row for row in rows(log) if "ewc/penalty" in row][-1])
    keys = [key for key in found[0] if key.startswith("ewc/") and key != "ewc/task"]
    assert [found[0][k] for k in keys] == pytest.approx([found[1][k] for k in keys], rel=1e-2, abs=1e-6)
