"""The penalty solved for after the step, instead of added to the gradient."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from cl_diffusion.callbacks import EWC, L2SP, MAS, L2Init, Regularizer, SynapticIntelligence
from cl_diffusion.callbacks.regularization.stability import diverging, stability_limit
from cl_diffusion.fisher import BandedFisher, DiagonalFisher, IsotropicFisher, KroneckerFisher, MeanGradientFisher
from cl_diffusion.linalg import Identity, Operator, Penalty, Quadratic, parameters
from tests.callbacks.stranger import Regression, fit_tasks, loader, trainer, weights
from tests.callbacks.test_gradient_mode import ManuallyOptimised, doubled


def total_gradient(regularizer: Regularizer, theta: dict[str, Tensor]) -> dict[str, Tensor]:
    wide = {name: tensor.double().requires_grad_() for name, tensor in theta.items()}
    value = sum((doubled(term).value(wide) for term in regularizer.terms), torch.zeros((), dtype=torch.float64))
    value.backward()
    return {name: tensor.grad for name, tensor in wide.items() if tensor.grad is not None}


class Watched(Regression):
    """Keeps the weights before and after the last step of plain SGD, and its gradient."""

    rates = (0.05, 0.05)

    def configure_optimizers(self) -> Any:
        first, second = self.rates
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": second}]
        return torch.optim.SGD(groups, lr=first)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in self.named_parameters()}
        self.gradient = {name: p.grad.detach().clone() for name, p in self.named_parameters()}

    def on_train_batch_end(self, *_: Any) -> None:
        self.after = {name: p.detach().clone() for name, p in self.named_parameters()}


class TwoRates(Watched):
    rates = (0.05, 0.2)


@pytest.mark.parametrize("model", [Watched, TwoRates])
@pytest.mark.parametrize("strength", [1.0, 1e6])
@pytest.mark.parametrize("fisher", [DiagonalFisher(), MeanGradientFisher()], ids=["diagonal", "rank one"])
def test_a_step_ends_where_distance_and_penalty_balance(fisher: Any, strength: float, model: type[Watched]) -> None:
    """``x = theta' - eta lambda grad(x)``, ``theta'`` where SGD went, with the learning rate of each group."""
    ewc, watched = EWC(fisher, strength, mode="proximal"), model()
    fit_tasks(watched, ewc, tasks=(0, 1, 2))
    regularizer = EWC(fisher, strength, mode="proximal")
    regularizer.load_state_dict(ewc.state_dict())
    trainer(regularizer, max_steps=2).fit(watched, loader(3))
    held = regularizer.terms[0].operator
    assert [entry["task"] for entry in held.provenance.record] == [1, 2, 3, 4]
    regularizer.load_state_dict(ewc.state_dict())  # as it was during the steps
    rates = {name: watched.rates[0 if name.startswith("net.0") else 1] for name in watched.before}
    landed = {n: watched.before[n].double() - rates[n] * watched.gradient[n].double() for n in rates}
    pull = total_gradient(regularizer, watched.after)
    for name, rate in rates.items():
        balance = watched.after[name].double() + rate * strength * pull[name] - landed[name]
        assert float(balance.abs().max()) < 1e-6 * (1 + rate * strength * held.largest_eigenvalue())


def mean_loss(model: Regression, seed: int) -> float:
    with torch.no_grad():
        return float(torch.cat([model.per_sample_loss(batch) for batch in loader(seed)]).mean())


@pytest.mark.parametrize("strength", [1e4, 1e6, 1e8])
@pytest.mark.parametrize("fisher", [DiagonalFisher(), MeanGradientFisher()], ids=["diagonal", "rank one"])
def test_it_trains_where_the_gradient_diverges(fisher: Any, strength: float) -> None:
    with (
        pytest.warns(UserWarning, match="beyond 2, where SGD diverges on a quadratic .*Use mode='proximal'"),
        pytest.raises(FloatingPointError, match="training has diverged"),
    ):
        fit_tasks(Regression(), EWC(fisher, strength), max_epochs=30)
    proximal, free = Regression(), Regression()
    ewc = EWC(fisher, strength, mode="proximal")
    fit_tasks(proximal, ewc, tasks=(0,), max_epochs=30)
    (first,) = ewc.terms
    fit_tasks(proximal, ewc, tasks=(1,), max_epochs=30)
    fit_tasks(free, max_epochs=30)
    held, lost = (float(first.value(dict(model.named_parameters()))) for model in (proximal, free))
    assert held < 1e-2 * lost
    if isinstance(fisher, DiagonalFisher):
        assert mean_loss(proximal, 0) < 0.7 * mean_loss(free, 0)
    else:  # one direction leaves room for the new task, and here holds none of the old
        assert mean_loss(proximal, 1) < 0.02


OPTIMIZERS = [
    (torch.optim.SGD, {}, 2.0),
    (torch.optim.SGD, {"momentum": 0.9}, 3.8),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, 7.6),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
]


@pytest.mark.parametrize(("kind", "options", "limit"), OPTIMIZERS)
def test_the_limit_is_where_a_quadratic_diverges(kind: Any, options: dict[str, Any], limit: float) -> None:
    for factor in (0.98, 1.02):
        x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = kind([x], lr=0.1, **options)
        assert stability_limit(optimizer, optimizer.param_groups[0]) == pytest.approx(limit)
        for _ in range(4000):
            x.grad = factor * limit / 0.1 * x.detach()
            optimizer.step()
        assert (float(x.abs()) < 1.0) == (factor < 1)


def diverges(model: Regression, strength: float, tasks: tuple[int, ...] = (0, 1), **options: Any) -> bool:
    ewc = EWC(DiagonalFisher(), strength)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_tasks(model, ewc, tasks=tasks, **options)
    return sum("diverges on a quadratic" in str(w.message) for w in caught) == 1


def test_weight_decay_counts_as_curvature() -> None:
    x = torch.nn.Parameter(torch.zeros(1))
    penalty = Penalty()
    penalty.remember(Quadratic(Identity({"x": x.detach()}), {"x": x.detach()}))
    for decay, diverges_there in ((0.0, False), (0.2, True)):
        optimizer = torch.optim.SGD([x], lr=1.0, weight_decay=decay)
        assert (diverging(optimizer, {"x": x}, penalty, 1.9) is not None) == diverges_there


def test_the_warning_comes_once_and_only_where_it_is_true() -> None:
    assert diverges(Regression(), 1e4)
    assert not diverges(Regression(), 1.0)
    assert not diverges(Regression(torch.optim.Adam), 1e8)
    assert not diverges(Regression(), 1e4, gradient_clip_val=1.0)  # a clipped step is bounded
    assert not diverges(Regression(lr=1e-9), 1e4)


@pytest.mark.parametrize("regularizer", [L2SP, L2Init, SynapticIntelligence, MAS])
def test_every_regulariser_can_be_proximal(regularizer: Any) -> None:
    options = {"output": lambda module, batch: module.net(batch[0])} if regularizer is MAS else {}
    held = regularizer(1e9, mode="proximal", **options)
    model = Regression()
    fit_tasks(model, held, tasks=(0,))
    anchor = weights(model)
    fit_tasks(model, held, tasks=(1,))
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(model), anchor, strict=True)])
    free = fit_tasks(Regression(), tasks=(0, 1))
    way = torch.cat([(a - b).flatten() for a, b in zip(weights(free), anchor, strict=True)])
    assert float(moved.norm()) < (0.5 if regularizer is MAS or regularizer is SynapticIntelligence else 1e-3) * float(
        way.norm()
    )


def test_two_optimizers_solve_each_for_their_own_parameters() -> None:
    ewc = EWC(MeanGradientFisher(), 1e6, mode="proximal")
    model = ManuallyOptimised()
    fit_tasks(model, ewc, tasks=(0, 1))
    assert all(bool(torch.isfinite(w).all()) for w in weights(model))
    plain = ManuallyOptimised()
    fit_tasks(plain, tasks=(0, 1))
    penalty = sum(float(term.value(dict(model.named_parameters()))) for term in ewc.terms)
    assert penalty < 0.1 * sum(float(term.value(dict(plain.named_parameters()))) for term in ewc.terms)


def test_a_step_that_the_scaler_skips_moves_nothing() -> None:
    ewc, model = EWC(DiagonalFisher(), 10.0, mode="proximal"), Regression()
    fit_tasks(model, ewc, tasks=(0,))
    with torch.no_grad():
        model.net[0].weight.add_(1.0)
    before = weights(model)
    overflowing = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**60))
    fit_tasks(model, ewc, tasks=(1,), max_steps=3, plugins=[overflowing])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


class Custom(Regularizer):
    """A stranger's importance without a joint resolvent."""

    def importance(self, trainer: Any, pl_module: Any, task: int) -> Operator:
        names = parameters.trainable_parameters(pl_module)
        vectors = {name: torch.randn(1, *p.shape) for name, p in names.items()}
        from cl_diffusion.linalg import Diagonal, LowRank, total

        ones = {name: torch.ones_like(p.detach()) for name, p in names.items()}
        return total([Diagonal(ones), LowRank(vectors, torch.ones(1))])


def test_identities_of_several_tasks_are_solved_for_jointly() -> None:
    """At a great strength two equal anchors hold a third task's weights to where they were."""
    model, ewc = Regression(), EWC(IsotropicFisher(), 1e8, mode="proximal")
    fit_tasks(model, ewc, tasks=(0, 1))
    before = weights(model)
    fit_tasks(model, ewc, tasks=(2,))
    assert len(ewc.terms) == 1
    assert all(torch.allclose(now, then, atol=1e-3) for now, then in zip(weights(model), before, strict=True))


def test_what_has_no_closed_resolvent_is_refused_and_why() -> None:
    with pytest.raises(ValueError, match="mode='proximal' with KroneckerFisher.*no joint closed resolvent"):
        EWC(KroneckerFisher(), mode="proximal")
    banded = BandedFisher(KroneckerFisher(), lambda batch: torch.zeros(len(batch[0])).long(), names=["one"])
    with pytest.raises(ValueError, match="mode='proximal' with BandedFisher"):
        EWC(banded, mode="proximal")
    with pytest.raises(ValueError, match="memory='separate'; several anchors must be solved jointly"):
        EWC(MeanGradientFisher(), mode="proximal", memory="separate")
    with pytest.raises(ValueError, match="the terms \\(sum\\) have no joint resolvent; use mode='gradient'"):
        fit_tasks(Regression(), Custom(1.0, "custom", mode="proximal"))
    two = (EWC(DiagonalFisher(), mode="proximal"), L2Init(mode="proximal"))
    with pytest.raises(ValueError, match="2 regularisers \\(ewc, l2_init\\) have mode='proximal'"):
        fit_tasks(Regression(), *two)
    with pytest.raises(ValueError, match="mode='newton'; expected one of 'gradient', 'proximal'"):
        EWC(DiagonalFisher(), mode="newton")  # type: ignore[arg-type]


@pytest.mark.parametrize("failing", [False, True])
def test_no_hook_is_left_behind(failing: bool) -> None:
    class Failing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if failing and batch_idx == 1:
                raise RuntimeError("stop")
            assert self.optimizers().optimizer._optimizer_step_post_hooks
            return super().training_step(batch, batch_idx)

    fitting = trainer(EWC(DiagonalFisher(), 1.0, mode="proximal"))
    with pytest.raises(RuntimeError, match="stop") if failing else contextlib.nullcontext():
        fitting.fit(Failing(), loader(0))
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in fitting.optimizers)
