from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from cl_diffusion.callbacks import EWC, L2SP, MAS, SynapticIntelligence, TraceMatched, WarmUp
from cl_diffusion.fisher import (
    DiagonalFisher,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    OutputNormalized,
    SquaredError,
    estimate,
)
from tests.callbacks.stranger import Regression, fit_tasks, loader, weights


class Telling(Regression):
    @property
    def output_loss(self) -> OutputLoss:
        return OutputLoss(SquaredError(), output=lambda module, batch: module.net(batch[0]))


def trace_of_the_loss(model: Regression, residual: Any = "empirical") -> float:
    loss = model.output_loss if isinstance(model, Telling) else Regression.per_sample_loss
    return float(estimate(DiagonalFisher(residual=residual), model, loss, loader(0)).trace())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "regularizer",
    [
        EWC(DiagonalFisher(), "auto"),
        EWC(MeanGradientFisher(), "auto"),
        EWC(LeadingEigenpairsFisher(rank=2), "auto"),
        EWC(KroneckerFisher(), "auto"),
        EWC(DiagonalFisher(weighting=OutputNormalized(tau=0.1)), "auto"),
        SynapticIntelligence("auto"),
        MAS("auto"),
        L2SP("auto"),
    ],
    ids=["diagonal", "rank one", "eigenpairs", "Kronecker", "normalised", "SI", "MAS", "L2-SP"],
)
def test_auto_gives_every_importance_the_trace_of_the_losses_own(regularizer: Any) -> None:
    model = Telling()
    if isinstance(regularizer, L2SP):
        expected = trace_of_the_loss(model)  # where the task starts
        fit_tasks(model, regularizer, tasks=(0,))
    else:
        fit_tasks(model, regularizer, tasks=(0,))
        expected = trace_of_the_loss(model)
    (term,) = regularizer.terms
    assert float(term.operator.trace()) == pytest.approx(expected, rel=1e-5)
    assert "scale" in term.operator.provenance.identity


@pytest.mark.parametrize(
    "make",
    [
        lambda left_out: EWC(DiagonalFisher(exclude=left_out), "auto"),
        lambda left_out: EWC(MeanGradientFisher(exclude=left_out), "auto"),
        lambda left_out: SynapticIntelligence("auto", exclude=left_out),
    ],
    ids=["diagonal", "rank one", "SI"],
)
def test_traces_are_matched_over_the_parameters_that_are_held(make: Any) -> None:
    model = fit_tasks(Telling(), regularizer := make(["net.0.*"]), tasks=(0,))
    loss: Any = Regression.per_sample_loss
    expected = float(estimate(DiagonalFisher(exclude=["net.0.*"]), model, loss, loader(0)).trace())
    assert float(regularizer.terms[0].operator.trace()) == pytest.approx(expected, rel=1e-5)


def test_auto_is_one_for_the_reference_itself_at_no_further_cost() -> None:
    matched, plain = EWC(DiagonalFisher(), "auto"), EWC(DiagonalFisher(), 1.0)
    models = [fit_tasks(Telling(), ewc) for ewc in (matched, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*map(weights, models), strict=True))


def test_a_multiple_of_the_expected_curvature() -> None:
    reference = DiagonalFisher(residual="model")
    ewc, model = EWC(MeanGradientFisher(), TraceMatched(3.0, reference), seed=7), Telling()
    fit_tasks(model, ewc, tasks=(0,))
    expected = float(estimate(reference, model, model.output_loss, loader(0), seed=0).trace())
    assert ewc.strength.largest * float(ewc.terms[0].operator.trace()) == pytest.approx(3 * expected, rel=1e-5)


def test_what_auto_resolved_to_is_logged(tmp_path: Path) -> None:
    ewc, log = EWC(MeanGradientFisher(), TraceMatched(2.0)), CSVLogger(tmp_path)
    fit_tasks(Telling(), ewc, tasks=(0,), logger=log)
    (row,) = [r for r in csv.DictReader((Path(log.log_dir) / "metrics.csv").open()) if r["ewc/loss_trace"]]
    assert float(row["ewc/resolved_strength"]) == pytest.approx(
        2 * float(row["ewc/loss_trace"]) / original_trace(), rel=1e-4
    )


def original_trace() -> float:
    ewc = EWC(MeanGradientFisher())
    fit_tasks(Telling(), ewc, tasks=(0,))
    return float(ewc.terms[0].operator.trace())


def test_a_warm_up_rises_from_zero_in_every_task() -> None:
    schedule = WarmUp(8.0, steps=4)
    assert [schedule.at(step) for step in range(6)] == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    seen: list[tuple[int, float]] = []

    class Spying(EWC):
        def add_gradient(self, step: Any) -> None:
            seen.append((len(self.terms), self._strength_at(step)))
            super().add_gradient(step)

    fit_tasks(Regression(), Spying(DiagonalFisher(), schedule), tasks=(0, 1, 2))
    assert [value for _, value in seen] == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0] * 3
    assert WarmUp("auto", 3).reference is not None


def test_another_scale_is_not_loaded() -> None:
    matched = EWC(DiagonalFisher(), "auto")
    fit_tasks(Telling(), matched, tasks=(0,))
    with pytest.raises(
        ValueError,
        match="scale='trace of diagonal, empirical', this one's 'its own trace'; use a strength of that kind",
    ):
        EWC(DiagonalFisher(), 1.0).load_state_dict(matched.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmUp(1.0, 0), "steps=0; expected a positive"),
        (lambda: TraceMatched(-1.0), "multiple=-1.0; expected a finite number >= 0"),
        (lambda: EWC(DiagonalFisher(), "strong"), "strength='strong'; expected a finite number >= 0, 'auto'"),
        (lambda: EWC(DiagonalFisher(), True), "strength=True"),
    ],
)
def test_a_strength_that_is_none_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
