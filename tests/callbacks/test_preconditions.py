"""What would be wrong later is refused before a task is trained, and says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from cl_diffusion.callbacks import EWC, L2SP, MAS, L2Init, SynapticIntelligence, TraceMatched
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher, LeadingEigenpairsFisher, MeanGradientFisher
from cl_diffusion.linalg import LowRank
from tests.callbacks.stranger import Regression, fit_tasks, loader, trainer, weights
from tests.callbacks.test_task import Stream


def test_two_of_one_name_are_refused_whatever_their_classes() -> None:
    pair = EWC(DiagonalFisher(), name="old"), L2Init(name="old")
    with pytest.raises(ValueError, match="name='old' is that of 2 regularisers \\(EWC, L2Init\\).*another name"):
        fit_tasks(Regression(), *pair)
    with pytest.raises(ValueError, match="name=''; expected a name"):
        EWC(DiagonalFisher(), name="")


class Growing(Regression):
    """A head with one more output in every epoch from the second on."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch:
            self.net[2] = nn.Linear(4, 1 + self.current_epoch)

    def per_sample_loss(self, batch: Any) -> Tensor:
        return (self.net(batch[0])[:, :1] - batch[1]).square().mean(1)


class Outgrowing(Growing):
    def on_train_epoch_start(self) -> None:
        """Grows before the callbacks' hook."""

    def on_train_epoch_end(self) -> None:
        self.net[2] = nn.Linear(4, 2 + self.current_epoch)


@pytest.mark.parametrize(
    ("regularizer", "remedy"),
    [
        (lambda: EWC(DiagonalFisher(), epochs_per_task=1), r"DiagonalFisher\(exclude=\['net.2.weight', 'net.2.bias'\]"),
        (lambda: SynapticIntelligence(epochs_per_task=1), r"SynapticIntelligence\(exclude=\['net.2.weight', "),
        (lambda: L2Init(epochs_per_task=1), r"L2Init\(exclude="),
    ],
    ids=["EWC", "SI", "L2-init"],
)
def test_a_head_that_grows_within_a_fit_is_named_before_a_step(regularizer: Any, remedy: str) -> None:
    message = "holds 'net.2.weight' in shape \\(1, 4\\), and Outgrowing has it in shape \\(2, 4\\) \\(and 1 more\\).*"
    with pytest.raises(ValueError, match=message + remedy):
        trainer(regularizer()).fit(Outgrowing(), loader(0))


def test_a_head_that_l2_sp_no_longer_holds_may_change() -> None:
    """Each task replaces the anchor, and with it the shape of a head that grows after the first task's only epoch."""
    model, regularizer = Outgrowing(), L2SP()
    shapes = []
    for seed in (0, 1):
        fit_tasks(model, regularizer, tasks=(seed,), max_epochs=1)
        shapes.append(tuple(regularizer.terms[0].anchor["net.2.weight"].shape))
    assert shapes == [(1, 4), (2, 4)]


def test_a_parameter_that_is_frozen_within_a_task_is_still_held() -> None:
    class Freezing(Regression):
        def on_train_epoch_start(self) -> None:
            self.net[0].weight.requires_grad_(self.current_epoch == 0)

    intelligence = SynapticIntelligence()
    trainer(intelligence).fit(Freezing(), loader(0))
    assert "net.0.weight" in intelligence.terms[0].operator.names


def test_a_loader_that_gives_its_batches_once_is_refused() -> None:
    model = Regression()
    before = weights(model)
    with pytest.raises(ValueError, match="EWC 'ewc': train_dataloader=generator gives its batches once"):
        trainer(EWC(DiagonalFisher())).fit(model, (batch for batch in loader(0)))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        while True:
            x = torch.randn(3, generator=generator)
            yield x, x.sum(0, keepdim=True)


def test_a_loader_without_end_is_read_as_far_as_it_was_trained_on() -> None:
    ewc = EWC(DiagonalFisher())
    trainer(ewc, max_epochs=-1, max_steps=3).fit(Regression(), DataLoader(Endless(), batch_size=4))
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 12


def test_a_loader_without_length_is_read_to_its_end() -> None:
    class Short(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(list(loader(0).dataset))

    ewc = EWC(DiagonalFisher())
    trainer(ewc).fit(Regression(), DataLoader(Short(), batch_size=8))
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 24


def test_a_task_that_ends_within_an_epoch_leaves_the_epochs_workers_alone() -> None:
    ewc = EWC(DiagonalFisher(), 0.1)

    class OwnClock(Regression):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 2:
                ewc.end_task(self.trainer)

    data = DataLoader(loader(0).dataset, batch_size=8, num_workers=1, persistent_workers=True)
    fitting = trainer(ewc, max_epochs=2)
    fitting.fit(OwnClock(), data)
    assert fitting.global_step == 6
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWC(DiagonalFisher(), max_rank=1), "max_rank=1 with DiagonalFisher, whose operators are not of low"),
        (lambda: EWC(KroneckerFisher(), max_rank=1), "max_rank=1 with KroneckerFisher"),
    ],
)
def test_a_rank_of_what_has_none_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    EWC(MeanGradientFisher(), max_rank=1)


class Shapeless(Regression):
    def per_sample_loss(self, batch: Any) -> Any:
        return {"loss": super().per_sample_loss(batch)}


@pytest.mark.parametrize(
    ("model", "regularizer", "message"),
    [
        (
            Shapeless,
            lambda: EWC(DiagonalFisher()),
            "EWC 'ewc'.*first batch, a list.*Shapeless.per_sample_loss",
        ),
        (Regression, lambda: MAS(output="net"), "MAS 'mas'.*give output=lambda module, batch"),
        (Regression, lambda: MAS(output=lambda m, b: m.net(b[0]).sum()), "MAS 'mas'.*a scalar.*give output="),
        (
            Shapeless,
            lambda: SynapticIntelligence("auto"),
            "SynapticIntelligence '.*Shapeless.per_sample_loss",
        ),
    ],
    ids=["dict", "no function", "scalar", "reference"],
)
def test_a_loss_or_output_that_does_not_fit_names_its_regulariser(model: Any, regularizer: Any, message: str) -> None:
    fitted = model()
    before = weights(fitted)
    with pytest.raises(ValueError, match=message):
        fit_tasks(fitted, regularizer())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(fitted), strict=True))


class Waves(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def per_sample_loss(self, batch: Any) -> Tensor:
        return super().per_sample_loss(batch) + self.phase.abs().sum()


@pytest.mark.parametrize("make", [lambda **k: EWC(DiagonalFisher(**k)), SynapticIntelligence, L2Init, MAS])
def test_a_complex_parameter_is_refused_by_name_and_may_be_excluded(make: Any) -> None:
    output = {"output": lambda module, batch: module.net(batch[0])} if make is MAS else {}
    with pytest.raises((TypeError, ValueError), match="parameter 'phase' is complex.*exclude=\\['phase'\\]"):
        fit_tasks(Waves(), make(**output))
    fit_tasks(Waves(), regularizer := make(exclude=["phase"], **output))
    assert regularizer.terms


def test_precision_is_that_of_each_parameter_itself() -> None:
    """A frozen half-precision parameter that comes first rounds nothing of a double-precision model."""

    class Mixed(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.net.double()
            net = self.net
            del self.net
            self.first = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16), requires_grad=False)
            self.net = net

        def per_sample_loss(self, batch: Any) -> Tensor:
            return (self.net(batch[0].double()) - batch[1].double()).square().mean(1)

    fit_tasks(Mixed(), ewc := EWC(DiagonalFisher(), 1.0))
    theta = {name: p.detach() for name, p in Mixed().named_parameters()}
    assert next(iter(theta)) == "first"
    (term,) = ewc.penalty.working(theta)
    assert {tensor.dtype for tensor in term.anchor.values()} == {torch.float64}


def test_a_strength_whose_reference_needs_an_output_is_refused_in_setup() -> None:
    matched = TraceMatched(1.0, DiagonalFisher(residual="model"))
    with pytest.raises(TypeError, match="needs the model's output, and Regression has no `output_loss`"):
        fit_tasks(Regression(), SynapticIntelligence(matched))


def test_a_stream_is_tried_on_its_own_samples() -> None:
    asked: list[int | None] = []

    class Asked(Stream):
        def importance_dataloader(self, task: int | None = None) -> Any:
            asked.append(task)
            return loader(task or 0)

    seen: list[int] = []

    class Trained(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(len(asked))
            return super().training_step(batch, batch_idx)

    trainer(EWC(DiagonalFisher()), max_epochs=3).fit(Trained(), datamodule=Asked())
    assert asked == [0, 0, 1]  # tried on the first, taken of the first and of the second
    assert seen[0] == 1


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (lambda: SynapticIntelligence(damping=0.1), lambda: SynapticIntelligence(damping=0.2)),
        (lambda: SynapticIntelligence(), lambda: SynapticIntelligence(exclude=["net.2.*"])),
        (lambda: L2SP(), lambda: L2SP(include=["net.0.*"])),
        (lambda: EWC(DiagonalFisher()), lambda: EWC(DiagonalFisher(exclude=["net.2.*"]))),
        (lambda: EWC(DiagonalFisher(exclude=["net.2.*"])), lambda: EWC(DiagonalFisher())),
    ],
    ids=["damping", "exclude", "L2-SP", "EWC", "EWC on more"],
)
@pytest.mark.parametrize("running", [False, True], ids=["ended", "within a task"])
def test_a_checkpoint_of_another_importance_is_not_loaded(made: Any, other: Any, running: bool) -> None:
    regularizer = made()
    state: dict[str, Any] = {}

    class Saving(Regression):
        def on_train_batch_end(self, *_: Any) -> None:
            state.update(regularizer.state_dict())

    fit_tasks(Saving(), regularizer, tasks=(0,))
    if not running:
        state = regularizer.state_dict()
    if running and isinstance(regularizer, EWC):
        other().load_state_dict(state)  # nothing is kept of the first task yet
        return
    with pytest.raises(ValueError, match="the checkpoint's (importance|path)"):
        other().load_state_dict(state)
    made().load_state_dict(state)


class Detached(Regression):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return super().per_sample_loss(batch).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().per_sample_loss(batch).mean()


def test_a_loss_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="EWC 'ewc'.*no gradient: no trainable parameter takes part.*per_sample_loss"):
        fit_tasks(Detached(), EWC(DiagonalFisher()))
    with pytest.raises(ValueError, match="MAS 'mas'.*no gradient"):
        fit_tasks(Regression(), MAS(output=lambda module, batch: module.net(batch[0]).detach()))


def test_an_optimizer_that_is_not_seen_is_warned_of() -> None:
    class Hidden(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.hidden = torch.optim.SGD(self.net.parameters(), lr=0.05)

        def configure_optimizers(self) -> None:
            return None

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.hidden.zero_grad()
            self.per_sample_loss(batch).mean().backward()
            self.hidden.step()

    with pytest.warns(UserWarning, match="EWC 'ewc' has seen no optimizer step.*Hidden.configure_optimizers returns"):
        fit_tasks(Hidden(), EWC(DiagonalFisher()), tasks=(0,))


def test_half_a_stream_is_refused() -> None:
    class OnlyTimes(LightningDataModule):
        def task_at(self, epoch: int) -> int:
            return epoch

        def train_dataloader(self) -> Any:
            return loader(0)

    message = "OnlyTimes has `task_at`.*lacks num_tasks, importance_dataloader, reference_dataloader, evaluation_data"
    with pytest.raises(TypeError, match=message):
        trainer(EWC(DiagonalFisher())).fit(Regression(), datamodule=OnlyTimes())


@pytest.mark.parametrize(
    "make",
    [lambda e: EWC(DiagonalFisher(exclude=e)), *(lambda e, k=k: k(exclude=e) for k in (SynapticIntelligence, L2Init))],
)
def test_one_pattern_is_a_pattern_and_one_that_fits_nothing_is_named(make: Any) -> None:
    fit_tasks(Regression(), regularizer := make("net.2.*"), tasks=(0,))
    assert set(regularizer.terms[0].operator.names) == {"net.0.weight", "net.0.bias"}
    with pytest.warns(UserWarning, match="names \\['head.\\*'\\], which fit none of the 4 parameters of Regression"):
        fit_tasks(Regression(), make(["head.*"]), tasks=(0,))


def test_a_trace_at_the_start_over_a_loader_without_end_is_refused() -> None:
    endless = DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match="of a loader without a length, which may have no end.*limit_train_batches"):
        trainer(L2SP("auto"), max_epochs=-1, max_steps=3).fit(Regression(), endless)
    trainer(L2SP("auto"), max_epochs=-1, max_steps=3, limit_train_batches=2).fit(Regression(), endless)


def test_another_gamma_is_not_loaded() -> None:
    state = SynapticIntelligence(gamma=0.5).state_dict()
    with pytest.raises(ValueError, match="gamma=0.9, but the checkpoint was made with gamma=0.5"):
        SynapticIntelligence(gamma=0.9).load_state_dict(state)


def test_a_generator_among_loaders_is_refused_too() -> None:
    class Pair(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.per_sample_loss(batch["a"]).mean()

    loaders = {"a": loader(0), "b": (batch for batch in loader(1))}
    with pytest.raises(ValueError, match="train_dataloader=generator gives its batches once"):
        trainer(EWC(DiagonalFisher())).fit(Pair(), loaders)


def test_loaders_are_combined_in_a_pass_as_they_are_in_training() -> None:
    class Pair(Regression):
        def per_sample_loss(self, batch: Any) -> Tensor:
            return super().per_sample_loss(batch["a"])

    loaders = CombinedLoader({"a": loader(0), "b": loader(1, samples=16)}, "min_size")
    trainer(ewc := EWC(DiagonalFisher())).fit(Pair(), loaders)
    assert ewc.terms[0].operator.provenance.record[0]["samples"] == 16


@pytest.mark.parametrize("fisher", [MeanGradientFisher(), LeadingEigenpairsFisher()])
def test_persistent_workers_give_every_pass_the_same_order(fisher: Any) -> None:
    data = DataLoader(loader(0).dataset, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    trainer(ewc := EWC(fisher), max_epochs=1).fit(Regression(), data)
    assert ewc.terms


def test_each_fit_is_tried_on_its_first_batch() -> None:
    fit_tasks(Regression(), ewc := EWC(DiagonalFisher()), tasks=(0,))
    changed = Detached()
    before = weights(changed)
    with pytest.raises(ValueError, match="no gradient"):
        fit_tasks(changed, ewc, tasks=(1,))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(changed), strict=True))


def test_a_gradient_that_is_not_finite_says_so_itself() -> None:
    class Broken(Regression):
        def per_sample_loss(self, batch: Any) -> Tensor:
            return super().per_sample_loss(batch) / 0

        training_step = Detached.training_step

    with pytest.raises(FloatingPointError, match="not finite"):
        fit_tasks(Broken(), EWC(DiagonalFisher()))


def test_what_is_refused_at_a_boundary_is_not_held() -> None:
    class Mixed(EWC):
        """A low rank in the second task."""

        def importance(self, trainer: Any, pl_module: Any, task: int) -> Any:
            diagonal = super().importance(trainer, pl_module, task)
            if task == 0:
                return diagonal
            vectors = {name: tensor[None] for name, tensor in diagonal.values.items()}
            return LowRank(vectors, torch.ones(1), diagonal.provenance)

    ewc = Mixed(DiagonalFisher(), mode="proximal")
    with pytest.raises(ValueError, match="the terms \\(diagonal, low_rank\\) have no joint resolvent"):
        fit_tasks(Regression(), ewc)
    assert [term.operator.kind for term in ewc.terms] == ["diagonal"]


def test_a_head_that_grows_within_a_task_is_named_by_what_gathers_a_path() -> None:
    with pytest.raises(ValueError, match="SynapticIntelligence 'syn.*' holds 'net.2.weight' in shape \\(1, 4\\)"):
        trainer(SynapticIntelligence(), max_epochs=3).fit(Outgrowing(), loader(0))


def test_a_proximal_regulariser_at_strength_zero_is_none() -> None:
    off = EWC(DiagonalFisher(), 0.0, mode="proximal", name="off")
    beside = fit_tasks(Regression(), off, L2Init(mode="proximal"))
    alone = fit_tasks(Regression(), L2Init(mode="proximal"))
    assert all(torch.equal(a, b) for a, b in zip(weights(beside), weights(alone), strict=True))
    assert not off.terms


def test_a_boundary_that_was_interrupted_loses_no_path() -> None:
    class Interrupted(Regression):
        fail = True

        def per_sample_loss(self, batch: Any) -> Tensor:
            if self.fail and self.trainer.global_step == 6:
                raise RuntimeError("planned")
            return super().per_sample_loss(batch)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return Regression.per_sample_loss(self, batch).mean()

    model, intelligence = Interrupted(), SynapticIntelligence("auto")
    with pytest.raises(RuntimeError, match="planned"):
        fit_tasks(model, intelligence, tasks=(0,))
    model.fail = False
    with pytest.warns(UserWarning, match="was broken off"):
        fit_tasks(model, intelligence, tasks=(0,))
    assert float(intelligence.terms[0].operator.trace()) > 0
