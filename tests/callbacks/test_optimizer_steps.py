"""Whatever steps, and however: the penalty comes once a step, and what observes a step sees what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer

from cl_diffusion.callbacks import (
    EWC,
    L2SP,
    Constant,
    L2Init,
    Regularizer,
    Strength,
    SynapticIntelligence,
    WarmUp,
)
from cl_diffusion.fisher import DiagonalFisher
from tests.callbacks.stranger import Regression, fit_tasks, loader, trainer, weights
from tests.callbacks.test_gradient_mode import ManuallyOptimised

KINDS: dict[str, Callable[[], Regularizer]] = {
    "gradient": lambda: EWC(DiagonalFisher(), 5.0),
    "proximal": lambda: EWC(DiagonalFisher(), 5.0, mode="proximal"),
    "synaptic intelligence": lambda: SynapticIntelligence(5.0),
    "warm-up": lambda: L2SP(WarmUp(5.0, steps=4)),
}


class Raw(ManuallyOptimised):
    """Steps the optimizers themselves, past Lightning."""

    def optimizers(self, use_pl_optimizer: bool = False) -> Any:
        return super().optimizers(use_pl_optimizer=use_pl_optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_optimizer_is_like_lightnings_own(kind: str) -> None:
    managed, raw, free = ManuallyOptimised(), Raw(), Raw()
    fit_tasks(managed, KINDS[kind]())
    fit_tasks(raw, KINDS[kind]())
    fit_tasks(free)
    assert all(torch.equal(a, b) for a, b in zip(weights(managed), weights(raw), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(raw), weights(free), strict=True))


class RawClosure(Raw):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        def closure() -> Tensor:
            self.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.optimizers()[0].step(closure)


def test_a_closure_by_hand_is_refused_rather_than_missed() -> None:
    with pytest.raises(RuntimeError, match="SGD.step was given a closure by hand.*call backward and then step"):
        fit_tasks(RawClosure(), L2Init(1.0))


class SharpnessAware(SGD):
    """Two evaluations a step, the second where the loss is higher (Foret et al. 2021, 2010.01412)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        moved = []
        for p in self.param_groups[0]["params"]:
            moved.append(0.05 * p.grad)
            p.add_(moved[-1])
        closure()
        for p, ascent in zip(self.param_groups[0]["params"], moved, strict=True):
            p.sub_(ascent)
        super().step()
        return loss


class Penalised(Regression):
    """The penalty in the loss."""

    ewc: EWC

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        theta = dict(self.named_parameters())
        penalty = sum((term.value(theta) for term in self.ewc.terms), torch.zeros((), dtype=torch.float64))
        return super().training_step(batch, batch_idx) + 5.0 * penalty.float()


def test_a_closure_that_is_evaluated_twice_has_the_penalty_in_both() -> None:
    closed, oracle = Regression(SharpnessAware), Penalised(SharpnessAware)
    fit_tasks(closed, ewc := EWC(DiagonalFisher(), 5.0), tasks=(0,))
    oracle.ewc = EWC(DiagonalFisher(), 5.0)
    oracle.ewc.penalty.terms = ewc.terms
    oracle.load_state_dict(closed.state_dict())
    trainer(ewc).fit(closed, loader(1))
    trainer().fit(oracle, loader(1))
    for a, b in zip(weights(closed), weights(oracle), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_path_goes_from_where_a_step_begins_also_if_it_looks_elsewhere() -> None:
    """``w = -sum g dtheta`` adds up to the decrease of the loss, to second order in the step."""
    model = Regression(SharpnessAware, lr=1e-3)
    kept: list[float] = []

    class Watching(SynapticIntelligence):
        def observe_step(self, step: Any) -> None:
            super().observe_step(step)
            assert self._path is not None
            kept.append(float(sum(t.sum() for t in self._path.path.values())))

    data = [tuple(torch.stack(column) for column in zip(*loader(0).dataset, strict=True))]
    before = float(model.per_sample_loss(data[0]).mean())
    watching = Watching(1.0)
    trainer(watching, max_epochs=20).fit(model, torch.utils.data.DataLoader(loader(0).dataset, batch_size=24))
    decrease = before - float(model.per_sample_loss(data[0]).mean())
    assert kept[-1] == pytest.approx(decrease, rel=0.02)


def test_a_search_along_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS searches by the value of the loss.*first-order optimizer"):
        fit_tasks(Regression(LBFGS), L2Init(1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_step_that_the_scaler_skips_changes_nothing(kind: str) -> None:
    model, regularizer = Regression(partial(SGD, fused=True)), KINDS[kind]()
    fit_tasks(model, regularizer, tasks=(0,))
    with torch.no_grad():
        model.net[0].weight.add_(1.0)
    before = weights(model)
    overflowing = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**60))
    fit_tasks(model, regularizer, tasks=(1,), max_steps=3, plugins=[overflowing])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert all(float(term.operator.trace()) < float("inf") for term in regularizer.terms)
    if isinstance(regularizer, SynapticIntelligence):
        again, other = Regression(partial(SGD, fused=True)), SynapticIntelligence(5.0)
        fit_tasks(again, other, tasks=(0,))
        assert float(regularizer.terms[0].operator.trace()) == float(other.terms[0].operator.trace())


class Assigning(Optimizer):
    """Puts new tensors in the parameters' place, as some do."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad
        return loss


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_may_put_new_tensors_in_the_parameters_place(kind: str) -> None:
    pair = [fit_tasks(Regression(optimizer), KINDS[kind]()) for optimizer in (SGD, Assigning)]
    for a, b in zip(*map(weights, pair), strict=True):
        torch.testing.assert_close(a, b)


class WithoutRate(Assigning):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        for group in self.param_groups:
            group["lr"] = None

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - 0.05 * p.grad
        return loss


def test_only_a_proximal_step_needs_a_learning_rate() -> None:
    pair = [fit_tasks(Regression(optimizer), KINDS["gradient"]()) for optimizer in (SGD, WithoutRate)]
    for a, b in zip(*map(weights, pair), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="group 0 of WithoutRate has lr=None; use mode='gradient'"):
        fit_tasks(Regression(WithoutRate), KINDS["proximal"]())


def test_a_warm_up_counts_each_optimizers_own_steps() -> None:
    seen: dict[int, list[float]] = {0: [], 1: []}

    class Spying(L2Init):
        def add_gradient(self, step: Any) -> None:
            seen[step.position].append(self._strength_at(step))
            super().add_gradient(step)

    fit_tasks(ManuallyOptimised(), Spying(WarmUp(8.0, steps=4)), tasks=(0,))
    assert seen == {0: [0.0, 2.0, 4.0, 6.0, 8.0, 8.0], 1: [0.0, 2.0, 4.0, 6.0]}


def test_a_skipped_step_is_no_step_of_a_warm_up() -> None:
    regularizer = L2Init(WarmUp(8.0, steps=4))
    overflowing = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**60))

    class Telling(Regression):
        def on_train_epoch_end(self) -> None:
            self.taken = dict(regularizer._taken)

    model = Telling()
    trainer(regularizer, max_epochs=1, plugins=[overflowing]).fit(model, loader(0))
    assert model.taken == {}


def test_the_first_regulariser_speaks_for_all() -> None:
    """Twice the same penalty of half the strength is the penalty once."""
    whole = fit_tasks(Regression(), EWC(DiagonalFisher(), 4.0))
    halves = fit_tasks(Regression(), *(EWC(DiagonalFisher(), 2.0, name=name) for name in ("one", "two")))
    for a, b in zip(weights(whole), weights(halves), strict=True):
        torch.testing.assert_close(a, b)


def test_a_schedule_that_ends_at_zero_acts_until_then() -> None:
    class Fading(Strength):
        largest = 5.0  # type: ignore[assignment]

        def at(self, step: int) -> float:
            return 5.0 if step < 3 else 0.0

    def fit(trainer_steps: int, strength: Any) -> list[Tensor]:
        model = Regression()
        fit_tasks(model, regularizer := EWC(DiagonalFisher(), 5.0), tasks=(0,))
        regularizer.strength = strength
        fit_tasks(model, regularizer, tasks=(1,), max_steps=trainer_steps)
        return weights(model)

    assert all(torch.equal(a, b) for a, b in zip(fit(3, Fading()), fit(3, Constant(5.0)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(fit(5, Fading()), fit(5, Constant(5.0)), strict=True))


def test_an_optimizer_that_maximises_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SGD\(maximize=True\) would maximise the penalty too"):
        fit_tasks(Regression(partial(SGD, maximize=True)), L2Init(1.0))


class Replacing(Regression):
    """New optimizers in every epoch."""

    def on_train_epoch_start(self) -> None:
        self.trainer.strategy.setup_optimizers(self.trainer)


class Flaky(SGD):
    """Fails in its first step, as one does that runs out of memory."""

    failed = False

    def step(self, closure: Any = None) -> Any:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return super().step(closure)


class Catching(Regression):
    """Manual optimisation that takes no step where one fails, or at the first batch."""

    def __init__(self, optimizer: Any = Flaky) -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.per_sample_loss(batch).mean().backward()
        if isinstance(optimizer, Flaky):
            with contextlib.suppress(MemoryError):
                optimizer.step()
        elif self.current_epoch or batch_idx:
            optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pair", [(Replacing, Regression), (Catching, lambda: Catching(SGD))], ids=["replaced", "caught"]
)
def test_every_step_is_seen_of_optimizers_that_come_later_or_have_failed_once(kind: str, pair: Any) -> None:
    models = [fit_tasks(model(), KINDS[kind]()) for model in pair]
    for a, b in zip(*map(weights, models), strict=True):
        torch.testing.assert_close(a, b)


def test_steps_that_call_no_hooks_are_warned_of() -> None:
    class Patched(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plain = SGD.step.__wrapped__  # type: ignore[attr-defined]
            optimizer.step = lambda closure=None: plain(optimizer, closure)
            return optimizer

    with pytest.warns(UserWarning, match="SGD.step does not call the hooks"):
        fit_tasks(Patched(), SynapticIntelligence(1.0), tasks=(0,))


class OwnScaler(Regression):
    """Manual optimisation with a scaler of its own around a fused, raw optimizer."""

    def __init__(self, unscaled: bool = False, scale: float = 1024.0) -> None:
        super().__init__(partial(SGD, fused=True))
        self.automatic_optimization = False
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.unscaled = unscaled

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.scaler.scale(self.per_sample_loss(batch).mean()).backward()
        if self.unscaled:
            self.scaler.unscale_(optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scaler_of_ones_own_scales_the_penalty_of_a_fused_step(kind: str, unscaled: bool) -> None:
    scaled = fit_tasks(OwnScaler(unscaled), KINDS[kind]())
    plain = fit_tasks(Regression(), KINDS[kind]())
    for a, b in zip(weights(scaled), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_by_an_own_hook_silences_the_warning_of_divergence(recwarn: pytest.WarningsRecorder) -> None:
    class Clipping(Regression):
        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-3)

    fit_tasks(Clipping(), EWC(DiagonalFisher(), 1e6))
    assert not [warning for warning in recwarn if "diverges" in str(warning.message)]
