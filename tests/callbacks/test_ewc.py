from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from cl_diffusion.callbacks import EWC
from cl_diffusion.fisher import DiagonalFisher, FisherEstimator, MeanGradientFisher, OutputLoss, SquaredError, estimate
from tests.callbacks.stranger import Regression, fit_tasks, loader, trainer, weights

ESTIMATORS = [DiagonalFisher(), MeanGradientFisher()]
IDS = ["diagonal", "mean gradient"]


def two_tasks(model: Regression, *callbacks: Callback, **options: Any) -> Regression:
    fit_tasks(model, *callbacks, **options)
    return model


def test_one_line_on_a_strangers_project_holds_the_old_task() -> None:
    def old_loss(model: Regression) -> float:
        with torch.no_grad():
            return float(torch.cat([model.per_sample_loss(batch) for batch in loader(0)]).mean())

    free = old_loss(two_tasks(Regression(), max_epochs=30))
    held = old_loss(two_tasks(Regression(), EWC(DiagonalFisher(), strength=100.0), max_epochs=30))
    assert held < 0.5 * free


def shuffled(seed: int) -> torch.utils.data.DataLoader[Any]:
    """In an order, and with noise, from torch's own generator."""
    return torch.utils.data.DataLoader(loader(seed).dataset, batch_size=8, shuffle=True)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
def test_the_first_task_is_trained_as_without_it(estimator: FisherEstimator) -> None:
    """Trying the estimator on a first batch takes no random number from training."""
    found = []
    for callbacks in ([EWC(estimator, 10.0)], []):
        torch.manual_seed(1)
        model = Regression()
        trainer(*callbacks).fit(model, shuffled(0))
        found.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
def test_strength_zero_is_bit_for_bit_the_run_without_it(estimator: FisherEstimator) -> None:
    plain = two_tasks(Regression())
    switched_off = two_tasks(Regression(), EWC(estimator, strength=0.0))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(switched_off), strict=True))


def test_tasks_are_merged_by_default_and_rank_ones_kept_side_by_side_on_request() -> None:
    diagonal, stacked = EWC(DiagonalFisher()), EWC(MeanGradientFisher())
    separate = EWC(MeanGradientFisher(), memory="separate")
    for ewc in (diagonal, stacked, separate):
        two_tasks(Regression(), ewc)
        assert [e["task"] for term in ewc.terms for e in term.operator.provenance.record] == [1, 2]
    assert [term.operator.kind for term in diagonal.terms] == ["diagonal"]
    assert [term.operator.kind for term in stacked.terms] == ["low_rank"]
    assert [term.operator.kind for term in separate.terms] == ["low_rank", "low_rank"]


def test_the_rank_is_kept_below_a_bound_and_what_is_dropped_is_logged(tmp_path: Path) -> None:
    ewc, log = EWC(MeanGradientFisher(), max_rank=1), CSVLogger(tmp_path)
    fit_tasks(Regression(), ewc, logger=log)
    (term,) = ewc.terms
    assert term.operator.trace() == pytest.approx(term.operator.largest_eigenvalue())
    rows = list(csv.DictReader((Path(log.log_dir) / "metrics.csv").open()))
    dropped = [float(row["ewc/dropped_trace"]) for row in rows if row.get("ewc/dropped_trace")]
    assert dropped[0] == 0
    assert dropped[1] > 0


def test_a_frozen_parameter_stays_without_gradient() -> None:
    model = Regression()
    ewc = EWC(DiagonalFisher())
    trainer(ewc).fit(model, loader(0))
    model.net[0].weight.requires_grad_(False)
    before = model.net[0].weight.clone()
    trainer(ewc).fit(model, loader(1))
    assert torch.equal(model.net[0].weight, before)


def test_a_parameter_that_no_term_knows_gets_no_gradient() -> None:
    class TwoHeads(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(2, 2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)

    model, ewc = TwoHeads(), EWC(DiagonalFisher(), strength=10.0)
    model.other.requires_grad_(False)
    trainer(ewc).fit(model, loader(0))
    model.other.requires_grad_(True)
    before = model.other.weight.clone()
    trainer(ewc).fit(model, loader(1))
    assert torch.equal(model.other.weight, before)


class Tenfold(Regression):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 10 * batch[0], batch[1]


class Named(Regression):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return super().per_sample_loss(batch["main"])


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_the_fisher_sees_the_batches_that_training_sees(precision: Any) -> None:
    """Transfer hooks and precision plugin included."""
    ewc = EWC(DiagonalFisher())
    model = Tenfold()
    trainer(ewc, precision=precision).fit(model, loader(0))
    wide = model.double()
    batches = [(10 * x.double(), y.double()) for x, y in loader(0)]
    want = estimate(DiagonalFisher(), wide, Regression.per_sample_loss, batches)
    rough = precision == "bf16-true"
    got = ewc.terms[0].operator.trace()
    torch.testing.assert_close(got, want.trace(), rtol=0.2 if rough else 1e-4, atol=0)


def test_a_dict_of_loaders_is_combined_as_the_fit_combines_it() -> None:
    ewc = EWC(DiagonalFisher())
    trainer(ewc).fit(Named(), {"main": loader(0), "side": loader(1)})
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 24


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(3), torch.ones(1)


def test_an_endless_loader_is_read_as_far_as_an_epoch_goes() -> None:
    ewc = EWC(DiagonalFisher())
    trainer(ewc, limit_train_batches=3).fit(Regression(), torch.utils.data.DataLoader(Endless(), batch_size=4))
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 12


def test_two_of_them_in_one_trainer_have_names_of_their_own(tmp_path: Path) -> None:
    first, second = EWC(DiagonalFisher(), name="diagonal"), EWC(MeanGradientFisher(), name="rank one")
    saving = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True)
    trainer(first, second, saving, enable_checkpointing=True).fit(Regression(), loader(0))
    states = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert {"diagonal", "rank one"} == {key.split("'")[3] for key in states if key.startswith("EWC")}


def test_importance_of_another_estimator_is_not_loaded() -> None:
    ewc = EWC(DiagonalFisher())
    trainer(ewc).fit(Regression(), loader(0))
    with pytest.raises(ValueError, match="EWC 'ewc'.* has estimator='diagonal', this one's 'mean gradient"):
        EWC(MeanGradientFisher()).load_state_dict(ewc.state_dict())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_no_weight_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength=.*finite number >= 0"):
        EWC(DiagonalFisher(), strength=strength)


class Telling(Regression):
    """A project that says what its output is."""

    @property
    def output_loss(self) -> OutputLoss:
        return OutputLoss(SquaredError(), output=lambda module, batch: module.net(batch[0]))


def test_a_true_fisher_needs_the_output_and_says_how_to_tell_it() -> None:
    fisher = DiagonalFisher(residual="model")
    with pytest.raises(TypeError, match="needs the model's output, and Regression has no `output_loss`"):
        two_tasks(Regression(), EWC(fisher, strength=1.0))
    ewc = EWC(fisher, strength=1.0)
    two_tasks(Telling(), ewc)
    (term,) = ewc.terms
    assert term.operator.provenance.identity["residual"] == "model"
    assert float(term.operator.trace()) > 0


def test_the_empirical_fisher_is_that_of_the_per_sample_loss_also_where_the_output_is_told() -> None:
    told, plain = EWC(DiagonalFisher(), strength=1.0), EWC(DiagonalFisher(), strength=1.0)
    two_tasks(Telling(), told)
    two_tasks(Regression(), plain)
    torch.testing.assert_close(told.terms[0].operator.diagonal(), plain.terms[0].operator.diagonal())
