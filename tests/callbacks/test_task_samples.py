"""Whose samples an importance is of, and controls that know of no direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_diffusion.callbacks import EWC, OtherTask, OwnSamples, PureNoise, TaskSamples, TraceMatched
from cl_diffusion.fisher import (
    DiagonalFisher,
    IsotropicFisher,
    MeanGradientFisher,
    OutputLoss,
    RandomDirectionFisher,
    SquaredError,
    estimate,
)
from cl_diffusion.linalg import Operator, parameters
from tests.callbacks.stranger import Regression, loader, trainer
from tests.callbacks.test_continual_metrics import fit
from tests.fisher.laws import problem
from tests.tiny import ddpm


class Keeps(EWC):
    """Keeps each importance as it was estimated, and the trace that it was scaled to."""

    def remember(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        super().remember(trainer, pl_module, *arguments)
        self.scales = [*getattr(self, "scales", []), float(self.terms[0].operator.trace())]

    def importance(self, *arguments: Any) -> Operator:
        self.found = getattr(self, "found", [])
        self.found.append(super().importance(*arguments))
        return self.found[-1]


def importances(samples: TaskSamples | None, folder: Path, **options: Any) -> Keeps:
    torch.manual_seed(0)
    callback = Keeps(MeanGradientFisher(), options.pop("strength", 1e-9), samples=samples)
    fit(ddpm(), folder, callback, **options)
    return callback


def test_another_task_s_and_none_s_samples_are_what_they_say(tmp_path: Path) -> None:
    own, explicit, other, noise = (
        importances(samples, tmp_path, data={"epochs_per_task": 1}).found[0]
        for samples in (None, OwnSamples(), OtherTask(), PureNoise())
    )
    assert float(own.trace()) == float(explicit.trace())
    assert len({float(operator.trace()) for operator in (own, other, noise)}) == 3
    assert other.provenance.identity["samples_of"] == "the task +1"
    assert noise.provenance.identity["samples_of"] == "pure noise"
    with pytest.raises(ValueError, match="samples_of"):
        own.provenance.combined(noise.provenance)
    swapped = importances(OtherTask(), tmp_path, data={"epochs_per_task": 1, "tasks": [[2, 3], [0, 1]]}).found[0]
    assert float(swapped.trace()) != float(other.trace())


def test_the_trace_matched_is_that_of_the_task_s_own_samples(tmp_path: Path) -> None:
    data = {"epochs_per_task": 1}
    own = importances(None, tmp_path, data=data).found[0]
    strength = TraceMatched(1e-9, MeanGradientFisher())
    other, *_ = importances(OtherTask(), tmp_path, strength=strength, data=data).scales
    assert other == pytest.approx(float(own.trace()), rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "message"),
    [(OtherTask(), "needs a data module"), (PureNoise(), "has no `draw")],
    ids=["other", "noise"],
)
def test_a_project_that_has_no_such_samples_is_refused_before_it_trains(samples: TaskSamples, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        trainer(EWC(DiagonalFisher(), samples=samples)).fit(Regression(), loader(0))


def test_an_offset_to_the_task_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offset=0"):
        OtherTask(0)
    with pytest.raises(ValueError, match="offset=2 of 2 tasks"):
        importances(OtherTask(2), tmp_path)


@pytest.mark.parametrize("estimator", [IsotropicFisher(), RandomDirectionFisher()], ids=["isotropic", "random"])
def test_controls_have_the_trace_of_the_fisher_and_nothing_of_its_directions(estimator: Any) -> None:
    model, data = problem("mlp")
    loss = OutputLoss(SquaredError())
    exact = estimate(DiagonalFisher(), model, loss, [data])
    found = estimate(estimator, model, loss, [data], seed=4)
    assert float(found.trace()) == pytest.approx(float(exact.trace()), rel=1e-6)
    again = estimate(estimator, model, loss, [data], seed=4)
    other = estimate(estimator, model, loss, [data], seed=5)
    u = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert float(found.quadratic(u)) == float(again.quadratic(u))
    if isinstance(estimator, IsotropicFisher):
        size = sum(p.numel() for p in model.parameters())
        assert float(found.quadratic(u)) == pytest.approx(float(exact.trace() / size * parameters.inner(u, u)))
    else:
        assert float(found.quadratic(u)) != float(other.quadratic(u))
