"""Resets of units in any project: what they see, when they act, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.callbacks import (
    EWC,
    ContinualBackprop,
    L2Init,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
)
from cl_diffusion.callbacks.plasticity.unit_resets import UnitResets
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, loader, trainer, weights


class Rectified(Regression):
    """The small regression, with units that fire or do not."""

    def __init__(self, dead: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
        with torch.no_grad():
            self.net[0].bias[list(dead)] = -100.0


RESETS: dict[str, Callable[[], Callback]] = {
    "Self-Normalized Resets": lambda: SelfNormalizedResets(initial_age=24, tasks_per_update=1, epochs_per_task=2),
    "counting": lambda: SelfNormalizedResets(variant="counting", epochs_per_task=2),
    "by gradient": lambda: SelfNormalizedResets(initial_age=24, firing="gradient", floor=0.7, epochs_per_task=2),
    "ReDo": lambda: ReDo(every_n_steps=4),
    "ReDo, by gradient": lambda: ReDo(threshold=0.3, every_n_steps=4, score="gradient"),
    "Continual Backprop": lambda: ContinualBackprop(rate=0.05, maturity=2),
    "Continual Backprop, adaptable": lambda: ContinualBackprop(rate=0.05, maturity=2, utility="adaptable"),
    "Shrink and Perturb": lambda: ShrinkAndPerturb(shrink=0.99, perturb=0.01),
}


def fitted(*callbacks: Callback, model: Rectified | None = None, epochs: int = 6, **options: Any) -> Rectified:
    model = model or Rectified(dead=(1, 4), optimizer=torch.optim.Adam)
    ckpt = options.pop("ckpt_path", None)
    trainer(*callbacks, max_epochs=epochs, **options).fit(model, loader(0), ckpt_path=ckpt)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize(
    "idle",
    [
        SelfNormalizedResets(initial_age=10**6),
        SelfNormalizedResets(variant="counting", threshold=1e-300),
        ReDo(every_n_steps=10**6),
        ReDo(every_n_steps=1, score="gradient", threshold=1e-6, layers=["net.2"]),
        ContinualBackprop(rate=0.0),
        ContinualBackprop(rate=0.0, utility="adaptable"),
        ShrinkAndPerturb(shrink=1.0, perturb=0.0),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_until_something_is_reset_training_is_bit_for_bit_what_it_is_without(idle: Callback) -> None:
    assert same(fitted(idle, model=Rectified()), fitted(model=Rectified()))


@pytest.mark.parametrize("kind", RESETS)
@pytest.mark.parametrize("stopped_after", [1, 2, 4])
def test_resumed_is_uninterrupted(kind: str, stopped_after: int, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    first = RESETS[kind]()
    whole = fitted(first, keep, enable_checkpointing=True)
    if isinstance(first, UnitResets):
        assert sum(first.resets.values()) > 0
    assert not same(whole, fitted())
    second = RESETS[kind]()
    checkpoint = tmp_path / f"epoch={stopped_after}.ckpt"
    torch.load(checkpoint, weights_only=True)
    assert same(fitted(second, ckpt_path=checkpoint), whole)
    if isinstance(first, UnitResets) and isinstance(second, UnitResets):
        assert second.resets == first.resets


def test_dead_units_are_reset_once_they_are_old_enough_and_no_others() -> None:
    """Eight examples a batch, three batches an epoch: dead for 24 examples is one epoch."""
    resets = SelfNormalizedResets(initial_age=48)
    before = Rectified(dead=(1, 4), optimizer=torch.optim.SGD)
    with torch.no_grad():
        before.net[0].bias[[0, 2, 3, 5, 6, 7]] = 5.0
        before.net[2].bias[:] = 5.0
    fitted(resets, model=before, epochs=1)
    assert resets.resets == {"net.0": 0, "net.2": 0}
    fitted(resets, model=before, epochs=1)
    assert resets.resets == {"net.0": 2, "net.2": 0}
    assert bool((before.net[0].bias[[1, 4]] > -10).all())


class SeenBySampling(Rectified):
    """Draws from its own network in a training step, and validates."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.net(100 * torch.ones(500, 3))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(100 * torch.ones(500, 3))


def test_neither_validation_nor_sampling_counts() -> None:
    states = []
    for model in (Rectified(dead=(1,)), SeenBySampling(dead=(1,))):
        resets = SelfNormalizedResets(initial_age=10**6)
        trainer(resets, max_epochs=3, num_sanity_val_steps=2).fit(model, loader(0), loader(1))
        states.append(resets.state_dict()["watched"])
    assert torch.equal(states[0]["ages"], states[1]["ages"])
    assert states[0]["ages"][1] == 72  # three epochs of 24 examples
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_accumulated_batches_are_one_step() -> None:
    resets = SelfNormalizedResets(initial_age=16)
    fitted(resets, model=Rectified(dead=(1,)), epochs=1, accumulate_grad_batches=3)
    assert resets.resets["net.0"] == 1
    assert resets.state_dict()["watched"]["batch"] == 24


class SkipsSteps(Rectified):
    """No loss, so no step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        super().training_step(batch, batch_idx)
        return None


def test_without_a_step_there_is_no_reset() -> None:
    resets = ReDo(every_n_steps=1)
    model = SkipsSteps(dead=(1,))
    before = weights(model)
    fitted(resets, model=model, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("order", [0, 1])
def test_an_average_of_the_weights_gets_the_new_ones(order: int) -> None:
    average = EMAWeightAveraging(decay=0.999)
    resets = ReDo(every_n_steps=18)
    callbacks = [average, resets] if order else [resets, average]
    seen: dict[str, Tensor] = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen["raw"] = pl_module.net[0].weight[1].detach().clone()
            seen["average"] = average._average_model.module.net[0].weight[1].detach().clone()  # type: ignore[union-attr]

    fitted(*callbacks, Look(), model=Rectified(dead=(1,)))
    assert resets.resets["net.0"] >= 1
    torch.testing.assert_close(seen["average"], seen["raw"])


@pytest.mark.parametrize("fisher", [DiagonalFisher(), MeanGradientFisher(), KroneckerFisher(), None])
@pytest.mark.parametrize("anchors", ["kept", "released"])
def test_what_holds_a_unit_is_kept_or_let_go_with_it(fisher: Any, anchors: Any, tmp_path: Path) -> None:
    """Unit 1 dies after the first task; its anchor is what it was when it was alive."""
    clock = {"epochs_per_task": 2}
    held = L2Init(1.0, **clock) if fisher is None else EWC(fisher, 1.0, **clock)

    class Kill(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    pl_module.net[0].bias[1] = -100.0

    resets = SelfNormalizedResets(initial_age=24, anchors=anchors, **clock)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    model = Rectified(optimizer=torch.optim.SGD, lr=1e-3)
    with torch.no_grad():
        model.net[0].bias += 3.0
        model.net[2].bias += 3.0
    trainer(held, resets, Kill(), keep, max_epochs=3, enable_checkpointing=True).fit(model, loader(0))
    assert resets.resets["net.0"] >= 1
    (term, *_) = held.terms
    diagonal = term.operator.diagonal()
    of_unit = [diagonal["net.0.weight"][1], diagonal["net.0.bias"][1], diagonal["net.2.weight"][:, 1]]
    others = [diagonal["net.0.weight"][0], diagonal["net.2.weight"][:, 0]]
    assert all(bool((part == 0).all()) == (anchors == "released") for part in of_unit)
    assert all(bool((part > 0).any()) for part in others)
    state = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    (own,) = [value for key, value in state["callbacks"].items() if type(held).__name__ in key]
    assert len(own) > 0


class AdversarialPair(LightningModule):
    """Two networks, two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.two = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        with torch.no_grad():
            self.one[0].bias[:] = 5.0
            self.one[0].bias[2] = -100.0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip((self.one, self.two), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.0) for net in (self.one, self.two)]


def test_optimizers_that_are_stepped_by_hand_are_seen() -> None:
    resets = SelfNormalizedResets(initial_age=24, layers=["one.*"])
    trainer(resets, max_epochs=1).fit(AdversarialPair(), loader(0))
    assert resets.resets == {"one.0": 1}


class Smooth(Regression):
    """Its activation has no sign to go by."""


class Opaque(Regression):
    """Its activation is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), Nobodys(), nn.Linear(4, 1))


class Nobodys(nn.Module):
    """A square, of which no activation is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_what_cannot_be_watched_is_said_as_training_starts() -> None:
    with pytest.raises(ValueError, match=r"activation of net.0 \(Tanh\) is not known to be positive where it fires"):
        trainer(SelfNormalizedResets()).fit(Smooth(), loader(0))
    trainer(SelfNormalizedResets(firing="magnitude")).fit(Smooth(), loader(0))
    with pytest.raises(
        ValueError, match=r"no units are found in Opaque \(net.0: its output goes through mul, of which"
    ):
        trainer(ReDo()).fit(Opaque(), loader(0))
    with pytest.raises(ValueError, match=r"layers has 'net.7': no such layer; units are found of net.0, net.2"):
        trainer(ReDo(layers=["net.7"])).fit(Rectified(), loader(0))
    with pytest.raises(ValueError, match=r"layers has 'net.4': net.4: its output leaves the module"):
        trainer(ReDo(layers=["net.4"])).fit(Rectified(), loader(0))
    for layers in ("net.0", []):
        with pytest.raises(ValueError, match="expected a list of patterns such as"):
            trainer(ReDo(layers=layers)).fit(Rectified(), loader(0))
    with pytest.raises(TypeError, match="units: 'net.0' is none; expected cl_diffusion.plasticity.Units"):
        trainer(ReDo(units=["net.0"])).fit(Rectified(), loader(0))
    with pytest.raises(ValueError, match="LBFGS evaluates a batch several times"):
        trainer(ReDo()).fit(Rectified(optimizer=torch.optim.LBFGS), loader(0))


def test_a_frozen_layer_is_left_alone() -> None:
    model = Rectified(dead=(1,), optimizer=torch.optim.Adam)
    model.net[0].requires_grad_(False)
    before = weights(model.net[0])
    fitted(SelfNormalizedResets(initial_age=8), model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model.net[0]), strict=True))
    with pytest.raises(ValueError, match=r"net.0: net.0.weight is frozen"):
        fitted(ReDo(layers=["net.0"]), model=model)
    model.net[4].requires_grad_(False)  # reads net.2
    with pytest.raises(ValueError, match=r"no units are found in Rectified .*net.2: net.4.weight is frozen"):
        fitted(ReDo(), model=model)


class InParts(Rectified):
    """Calls the first layers of ``net`` without the rest, and reads their output twice."""

    def per_sample_loss(self, batch: Any) -> Tensor:
        x, y = batch
        hidden = self.net[:2](x)
        return (self.net[2:](hidden) - y + hidden.mean(1, keepdim=True)).square().mean(1)


def test_a_proof_of_a_forward_pass_that_is_not_run_is_none() -> None:
    with pytest.raises(ValueError, match=r"proved of the forward pass of 'net', which was not called"):
        fitted(ReDo(every_n_steps=1), model=InParts())


class Stateful(Rectified):
    """Whose forward pass draws, counts and keeps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.last = 0, None
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.last = x
        return self.net(x + 0.1 * torch.randn(3))

    def per_sample_loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean(1)


@pytest.mark.parametrize("kind", ["Self-Normalized Resets", "ReDo"])
def test_the_search_for_units_leaves_no_trace(kind: str) -> None:
    model = fitted(SelfNormalizedResets(initial_age=10**6) if kind != "ReDo" else ReDo(), model=Stateful())
    alone = fitted(model=Stateful())
    assert same(model, alone)
    assert (model.calls, float(model.seen)) == (alone.calls, float(alone.seen))
    assert isinstance(model.last, Tensor)


def test_what_is_checkpointed_and_computed_twice_counts_once() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Rectified):
        reentrant = False

        def per_sample_loss(self, batch: Any) -> Tensor:
            x, y = batch
            out = checkpoint(self.net, x.requires_grad_(), use_reentrant=self.reentrant)
            return (out - y).square().mean(1)

    for reentrant in (False, True):
        model = Checkpointed(dead=(1,))
        model.reentrant = reentrant
        resets = SelfNormalizedResets(initial_age=10**6)
        fitted(resets, model=model, epochs=1)
        assert int(resets.detector.ages[1]) == 24


def test_the_examples_of_a_sequence_model_are_along_the_second_axis() -> None:
    class Sequences(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), nn.Linear(4, 1))

        def per_sample_loss(self, batch: Any) -> Tensor:
            x, y = batch
            return (self.net(x.expand(5, *x.shape)).mean(0) - y).square().mean(1)

    resets = SelfNormalizedResets(initial_age=10**6)
    model = Sequences()
    with torch.no_grad():
        model.net[1].linear1.bias[3] = -1e3
    fitted(resets, model=model, epochs=1)
    assert [of.name for of in resets.units] == ["net.1.linear1"]
    assert int(resets.detector.ages[3]) == 24


def test_the_mean_that_is_handed_over_is_the_averages_too() -> None:
    """Units that give a constant: neither the weights' output nor the average's changes by a reset."""
    model = Rectified(lr=0.0)
    with torch.no_grad():
        model.net[2].weight.zero_()
        model.net[2].bias.fill_(0.5)
    x = torch.randn(5, 3)
    before = model.net(x)
    average = EMAWeightAveraging(decay=0.9)
    resets = ContinualBackprop(rate=0.2, maturity=2, layers=["net.2"])
    fitted(resets, average, model=model, epochs=4)
    assert sum(resets.resets.values()) > 0
    for net in (model.net, average._average_model.module.net):
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_steps_are_batches_however_many_optimizers_there_are(every: int) -> None:
    resets = ReDo(every_n_steps=every, layers=["one.0"])
    trainer(resets, max_epochs=2).fit(AdversarialPair(), loader(0))
    assert resets.resets["one.0"] == 1


def test_a_parameter_of_two_layers_is_shrunk_once_and_no_zero_changes_its_sign() -> None:
    model = Rectified(lr=0.0)
    model.net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    model.net[2].weight = model.net[0].weight
    before = model.net[0].weight.detach().clone()
    trainer(ShrinkAndPerturb(shrink=0.5, perturb=0.0), max_epochs=1, limit_train_batches=1).fit(model, loader(0))
    torch.testing.assert_close(model.net[0].weight.detach(), 0.5 * before)
    with torch.no_grad():
        model.net[0].weight.fill_(-0.0)
    trainer(ShrinkAndPerturb(shrink=1.0, perturb=0.0), max_epochs=1, limit_train_batches=1).fit(model, loader(0))
    assert model.net[0].weight.signbit().all()


def test_hooks_of_the_users_own_do_not_hinder_a_reset() -> None:
    model = Rectified(dead=(1,))

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        layer.kept = output  # of a graph, which cannot be copied

    model.net[0].register_forward_hook(keep)
    resets = SelfNormalizedResets(initial_age=8)
    fitted(resets, ShrinkAndPerturb(), model=model, epochs=1)
    assert resets.resets["net.0"] > 0


def test_fresh_weights_are_drawn_by_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    model, before = Rectified(lr=0.0), Rectified()
    monkeypatch.setattr(torch, "manual_seed", seeds.append)  # which would seed other devices too
    trainer(ShrinkAndPerturb(shrink=1.0, perturb=0.1), max_epochs=1).fit(model, loader(0))
    assert seeds == []
    assert not same(model, before)


def test_what_is_not_a_number_is_no_silence() -> None:
    model = Rectified(lr=0.0)
    x = torch.randn(24, 3)
    x[::8] = torch.nan
    resets = SelfNormalizedResets(initial_age=8)
    trainer(resets, max_epochs=2).fit(model, DataLoader(TensorDataset(x, torch.zeros(24, 1)), batch_size=8))
    assert sum(resets.resets.values()) == 0


class Elsewhere(Rectified):
    """Computes with its weights, not with its modules, as a graph does that was compiled before there were hooks."""

    def per_sample_loss(self, batch: Any) -> Tensor:
        (x, y), net = batch, self.net
        for layer in (net[0], net[2]):
            x = F.relu(F.linear(x, layer.weight, layer.bias))
        return (F.linear(x, net[4].weight, net[4].bias) - y).square().mean(1)


def test_it_is_said_that_no_unit_is_seen_of_modules_that_are_not_called() -> None:
    with pytest.raises(RuntimeError, match="no unit of net.0, net.2 was seen in a training step"):
        trainer(ReDo(every_n_steps=1), max_epochs=1).fit(Elsewhere(), loader(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SelfNormalizedResets(threshold=0.0), "threshold=0.0; expected a share"),
        (lambda: SelfNormalizedResets(threshold="a"), "threshold='a'; expected a share"),
        (lambda: SelfNormalizedResets(initial_age=0), "initial_age=0; expected a whole number >= 1"),
        (lambda: SelfNormalizedResets(initial_age=1e2), "initial_age=100.0; expected a whole number >= 1"),
        (lambda: SelfNormalizedResets(initial_age=9, max_age=8), "expected initial_age <= max_age"),
        (lambda: SelfNormalizedResets(firing="gradient"), "floor=0.0, firing='gradient'; expected .* > 0"),
        (lambda: SelfNormalizedResets(firing="magnitude", floor=float("nan")), "floor=nan"),
        (lambda: SelfNormalizedResets(seed="x"), "seed='x'"),
        (lambda: ReDo(score="gradient"), "threshold=0.0 with score='gradient'"),
        (lambda: ReDo(every_n_steps=2.5), "every_n_steps=2.5"),
        (lambda: ContinualBackprop(maturity=float("nan")), "maturity=nan"),
        (lambda: ShrinkAndPerturb(perturb=float("inf")), "perturb=inf"),
        (lambda: SelfNormalizedResets(variant="counting", firing="magnitude"), "variant='counting' counts signs"),
        (lambda: SelfNormalizedResets(floor=0.1), "0 where firing is a sign"),
        (lambda: ReDo(threshold=-1), "threshold=-1; expected"),
        (lambda: ReDo(every_n_steps=0), "every_n_steps=0"),
        (lambda: ContinualBackprop(decay=1.0), "decay=1.0"),
        (lambda: ShrinkAndPerturb(shrink=0.0), "shrink=0.0"),
        (lambda: ReDo(moments="all"), "moments='all'"),  # type: ignore[arg-type]
        (lambda: ReDo(anchors="lost"), "anchors='lost'"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_refused(build: Callable[[], Callback], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("other", [{"max_age": 10**6}, {"variant": "counting"}])
def test_another_histogram_s_checkpoint_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fitted(SelfNormalizedResets(max_age=1000), keep, epochs=1, enable_checkpointing=True)
    (name,), made = other, {"max_age": 1000, "variant": "'released'"}
    with pytest.raises(ValueError, match=rf"SelfNormalizedResets was made with {{'{name}': {made[name]}}}"):
        fitted(SelfNormalizedResets(**{"max_age": 1000, **other}), ckpt_path=tmp_path / "last.ckpt")


def test_another_network_s_checkpoint_is_refused(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fitted(ReDo(), keep, epochs=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="watched units"):
        fitted(ReDo(layers=["net.0"]), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.slow
def test_a_single_unit_that_never_fires_is_learned_after_a_reset_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 7, as ``tools/bench_plasticity.py relu`` runs it: the first six of its targets."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    from single_relu import single_relus

    for name in ("none", "L2", "L2 towards the initial weights"):
        assert [(error < 1e-2, fires) for error, fires in single_relus(name, range(6))] == [(False, False)] * 6
    found = single_relus("Self-Normalized Resets", range(6))
    assert all(fires for _, fires in found)
    assert sum(error < 1e-2 for error, _ in found) >= 5
