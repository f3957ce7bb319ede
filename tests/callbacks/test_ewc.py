from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from cl_diffusion.callbacks import EWC
from cl_diffusion.fisher import DiagonalFisher, FisherEstimator, MeanGradientFisher, OutputLoss, SquaredError, estimate
from tests.callbacks.stranger import Regression, loader, trainer

ESTIMATORS = [DiagonalFisher(), MeanGradientFisher()]
IDS = ["diagonal", "mean gradient"]


def weights(model: LightningModule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def two_tasks(model: Regression, *callbacks: Callback, **options: Any) -> Regression:
    for seed in (0, 1):
        trainer(*callbacks, **options).fit(model, loader(seed))
    return model


def test_one_line_on_a_strangers_project_holds_the_old_task() -> None:
    def old_loss(model: Regression) -> float:
        with torch.no_grad():
            return float(torch.cat([model.per_sample_loss(batch) for batch in loader(0)]).mean())

    free = old_loss(two_tasks(Regression(), max_epochs=30))
    held = old_loss(two_tasks(Regression(), EWC(DiagonalFisher(), strength=100.0), max_epochs=30))
    assert held < 0.5 * free


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
def test_strength_zero_is_bit_for_bit_the_run_without_it(estimator: FisherEstimator) -> None:
    plain = two_tasks(Regression())
    switched_off = two_tasks(Regression(), EWC(estimator, strength=0.0))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(switched_off), strict=True))


class PenaltyInTheLoss(Regression):
    """The same penalty by autograd, as the oracle."""

    ewc: EWC

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        theta = dict(self.named_parameters())
        penalty = sum((term.value(theta) for term in self.ewc.terms), torch.zeros(()))
        return super().training_step(batch, batch_idx) + 20.0 * penalty


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "value"},
    ],
    ids=["plain", "accumulation", "clip by norm", "clip by value"],
)
def test_the_closed_gradient_is_autograd_of_the_penalty_in_the_loss(
    estimator: FisherEstimator, options: dict[str, Any]
) -> None:
    closed = two_tasks(Regression(), EWC(estimator, strength=20.0), **options)
    oracle = PenaltyInTheLoss()
    oracle.ewc = EWC(estimator, strength=20.0)
    oracle.ewc.on_before_optimizer_step = lambda *_: None  # type: ignore[method-assign]
    two_tasks(oracle, oracle.ewc, **options)
    plain = two_tasks(Regression(), **options)
    for a, b, c in zip(weights(closed), weights(oracle), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(a, c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=IDS)
def test_resumed_within_the_second_task_is_the_uninterrupted_run(estimator: FisherEstimator, tmp_path: Path) -> None:
    def fit(*callbacks: Callback, **options: Any) -> Regression:
        model, ewc = Regression(torch.optim.Adam), EWC(estimator, strength=2.0, epochs_per_task=2)
        saving = bool(callbacks)
        trainer(ewc, *callbacks, max_epochs=4, enable_checkpointing=saving).fit(model, loader(0), **options)
        return model

    whole = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    resumed = fit(ckpt_path=tmp_path / "epoch=2.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    checkpoint = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("EWC")]
    assert state["terms"][0]["provenance"]["record"][0]["task"] == 1


def test_diagonals_of_many_tasks_are_one_term_and_rank_ones_are_kept() -> None:
    diagonal, rank_one = EWC(DiagonalFisher()), EWC(MeanGradientFisher())
    two_tasks(Regression(), diagonal)
    two_tasks(Regression(), rank_one)
    assert [term.operator.kind for term in diagonal.terms] == ["diagonal"]
    assert [term.operator.kind for term in rank_one.terms] == ["low_rank", "low_rank"]
    assert [entry["task"] for entry in diagonal.terms[0].operator.provenance.record] == [1, 2]


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


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_the_penalty_is_not_scaled(fused: bool) -> None:
    """float16 on the CPU; a fused optimizer unscales within its step, after the hook."""

    class Fused(Regression):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, fused=fused)

    def fit(*plugins: Any) -> list[Tensor]:
        model = Fused()
        for seed in (0, 1):
            trainer(ewc, plugins=list(plugins), max_epochs=4).fit(model, loader(seed))
        return weights(model)

    ewc = EWC(DiagonalFisher(), strength=20.0)
    exact = fit()
    ewc = EWC(DiagonalFisher(), strength=20.0)
    scaled = fit(MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0)))
    for a, b in zip(exact, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.005)


def test_two_of_them_in_one_trainer_have_names_of_their_own(tmp_path: Path) -> None:
    first, second = EWC(DiagonalFisher(), name="diagonal"), EWC(MeanGradientFisher(), name="rank one")
    saving = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True)
    trainer(first, second, saving, enable_checkpointing=True).fit(Regression(), loader(0))
    states = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert {"diagonal", "rank one"} == {key.split("'")[3] for key in states if key.startswith("EWC")}


def test_importance_of_another_estimator_is_not_loaded() -> None:
    ewc = EWC(DiagonalFisher())
    trainer(ewc).fit(Regression(), loader(0))
    with pytest.raises(ValueError, match="fisher: .*estimator='diagonal', this estimator's is 'mean gradient"):
        EWC(MeanGradientFisher()).load_state_dict(ewc.state_dict())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_no_weight_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength=.*finite number >= 0"):
        EWC(DiagonalFisher(), strength=strength)


def test_a_module_without_a_loss_of_each_sample_is_told_what_to_add() -> None:
    class Bare(LightningModule):
        pass

    with pytest.raises(TypeError, match="Bare has no `per_sample_loss`; add"):
        EWC(DiagonalFisher()).setup(trainer(), Bare(), "fit")


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
