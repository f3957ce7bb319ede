"""The penalty's closed gradient against autograd of the penalty in the loss, however a project is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from cl_diffusion.callbacks import EWC, L2SP, MAS, L2Init, Regularizer, SynapticIntelligence
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher, LeadingEigenpairsFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, fit_tasks, weights

STRENGTH = 2.0
REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "diagonal": lambda: EWC(DiagonalFisher(), STRENGTH),
    "diagonal, online": lambda: EWC(DiagonalFisher(), STRENGTH, memory="online", gamma=0.9),
    "rank one": lambda: EWC(MeanGradientFisher(), STRENGTH),
    "rank one, separate": lambda: EWC(MeanGradientFisher(), STRENGTH, memory="separate"),
    "eigenpairs": lambda: EWC(LeadingEigenpairsFisher(rank=2), STRENGTH),
    "Kronecker": lambda: EWC(KroneckerFisher(), STRENGTH),
    "synaptic intelligence": lambda: SynapticIntelligence(STRENGTH, damping=0.01, memory="merged"),
    "mas": lambda: MAS(STRENGTH / 10, output=lambda module, batch: module.net(batch[0])),
    "l2 sp": lambda: L2SP(STRENGTH / 10, first_task=False),
    "l2 init": lambda: L2Init(STRENGTH / 10),
}


def penalised(base: type[Regression]) -> type[Regression]:
    """The oracle: the penalty is part of the loss, and its gradient autograd's."""

    class PenaltyInTheLoss(base):  # type: ignore[misc, valid-type]
        regularizer: Regularizer

        def penalty(self) -> Tensor:
            theta = {name: p.double() for name, p in self.named_parameters()}
            total = torch.zeros((), dtype=torch.float64)
            for term in self.regularizer.terms:
                total = total + doubled(term).value(theta)
            return self.regularizer.strength.largest * total

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.penalty()

    return PenaltyInTheLoss


def doubled(term: Any) -> Any:
    """The same quadratic in float64, as far as its operator allows."""
    from torch.utils._pytree import tree_map

    state = tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) else leaf, term.state())
    return type(term).from_state(state)


def closed_and_oracle(
    make: Callable[[], Regularizer], base: type[Regression] = Regression, **options: Any
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights after three tasks: closed gradient, autograd, no penalty. The oracle's regulariser only remembers."""
    trained = options.pop("model_options", {})
    tasks = (0, 1, 2)

    def optimised(model: LightningModule, *callbacks: Any) -> list[Tensor]:
        extra = {key: value() if callable(value) else value for key, value in options.items()}
        return weights(fit_tasks(model, *callbacks, tasks=tasks, **extra))

    closed = optimised(base(**trained), make())
    oracle = penalised(base)(**trained)
    oracle.regularizer = make()
    oracle.regularizer.mode = "none"  # type: ignore[assignment]
    autograd = optimised(oracle, oracle.regularizer)
    return closed, autograd, optimised(base(**trained))


def check(found: tuple[list[Tensor], list[Tensor], list[Tensor]], rtol: float) -> None:
    closed, autograd, plain = (torch.cat([w.flatten().double() for w in each]) for each in found)
    moved = (autograd - plain).norm()
    assert moved > 1e-3
    assert (closed - autograd).norm() < rtol * autograd.norm()


@pytest.mark.parametrize("kind", [kind for kind in REGULARIZERS if kind != "synaptic intelligence"])
def test_every_regulariser_is_its_penalty_in_the_loss(kind: str) -> None:
    """Over whole fits. Synaptic Intelligence would see the oracle's penalty as part of the task's loss."""
    check(closed_and_oracle(REGULARIZERS[kind]), 1e-6)


class ManuallyOptimised(Regression):
    """Body and head by optimizers of their own, the head every second batch, on whatever loss ``loss`` says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.05), torch.optim.Adam(self.net[2].parameters(), lr=0.01)]

    def loss(self, batch: Any) -> Tensor:
        return self.per_sample_loss(batch).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for position, optimizer in enumerate(self.optimizers()):
            if position == 1 and batch_idx % 2:
                continue
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class ManualOracle(ManuallyOptimised):
    regularizer: Regularizer

    def loss(self, batch: Any) -> Tensor:
        theta = {name: p.double() for name, p in self.named_parameters()}
        penalty = sum((doubled(t).value(theta) for t in self.regularizer.terms), torch.zeros((), dtype=torch.float64))
        return super().loss(batch) + self.regularizer.strength.largest * penalty


@pytest.mark.parametrize("kind", ["diagonal", "rank one", "eigenpairs"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_manual_optimisation_with_two_optimizers(kind: str, precision: Any) -> None:
    """Each gets its own parameters' part of one joint penalty."""
    found = []
    for model in (ManuallyOptimised(), ManualOracle(), ManuallyOptimised()):
        regularizers: list[Any] = [] if found and len(found) == 2 else [REGULARIZERS[kind]()]
        if isinstance(model, ManualOracle):
            (model.regularizer,) = regularizers
            model.regularizer.mode = "none"  # type: ignore[assignment]
        found.append(weights(fit_tasks(model, *regularizers, tasks=(0, 1, 2), precision=precision)))
    check((found[0], found[1], found[2]), 1e-6 if precision == "32-true" else 1e-3)


@pytest.mark.parametrize("kind", ["diagonal", "rank one"])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "value"},
        {"model_options": {"optimizer": torch.optim.Adam, "lr": 0.01}},
        {"model_options": {"optimizer": torch.optim.SGD, "lr": 0.01, "momentum": 0.9, "nesterov": True}},
        {"model_options": {"optimizer": torch.optim.AdamW, "lr": 0.01, "fused": True}},
        {"precision": "64-true"},
    ],
    ids=["accumulation", "accumulation and clipping", "norm", "value", "Adam", "Nesterov", "fused AdamW", "64-true"],
)
def test_accumulation_clipping_and_optimizers(kind: str, options: dict[str, Any]) -> None:
    check(closed_and_oracle(REGULARIZERS[kind], **options), 1e-6)


class Groups(Regression):
    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": 0.01}]
        return torch.optim.SGD(groups, lr=0.05, weight_decay=0.01)


class Compiled(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="aot_eager")  # type: ignore[assignment]


class PartlyFrozen(Regression):
    """The body is trained on the first task alone; the head's bias from the second on."""

    fits = 0

    def on_train_start(self) -> None:
        self.fits += 1
        self.net[0].requires_grad_(self.fits == 1)
        self.net[2].bias.requires_grad_(self.fits > 1)


@pytest.mark.parametrize("kind", ["diagonal", "rank one"])
@pytest.mark.parametrize("base", [Groups, Compiled, PartlyFrozen])
def test_parameter_groups_compiled_modules_frozen_and_new_parameters(kind: str, base: type[Regression]) -> None:
    check(closed_and_oracle(REGULARIZERS[kind], base), 1e-6)


@pytest.mark.parametrize("kind", ["diagonal", "rank one"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_scaler_of_half_precision(kind: str, fused: bool) -> None:
    """float16 on the CPU: the penalty is added unscaled, whoever unscales. The loss itself is float16's."""
    options = {
        "plugins": lambda: [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))],
        "model_options": {"optimizer": torch.optim.SGD, "fused": fused},
    }
    check(closed_and_oracle(REGULARIZERS[kind], **options), 1e-3)


@pytest.mark.parametrize("kind", ["diagonal", "rank one"])
def test_bfloat16_autocast(kind: str) -> None:
    check(closed_and_oracle(REGULARIZERS[kind], precision="bf16-mixed"), 1e-3)


class Recorded(Regression):
    """One step, whose gradient is kept as the optimizer gets it."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen = {name: p.grad.detach().clone() for name, p in self.named_parameters()}


def scaled(fused: bool) -> dict[str, Any]:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=512.0))
    return {"plugins": [plugin], "optimizer": partial(torch.optim.SGD, fused=fused)}


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "32-true": dict,
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: scaled(fused=False),
    "16-mixed, fused": lambda: scaled(fused=True),
}


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_penalty_part_of_a_gradient_is_exact_in_every_precision(kind: str, precision: str) -> None:
    """At one and the same point: gradient with minus gradient without is the autograd of the penalty, to 1e-6."""
    model, regularizer = Recorded(), REGULARIZERS[kind]()
    fit_tasks(model, regularizer, tasks=(0, 1))
    if isinstance(regularizer, L2SP):
        regularizer.on_task_start = lambda *_: None  # type: ignore[method-assign]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    theta = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    value = sum((doubled(term).value(theta) for term in regularizer.terms), torch.zeros((), dtype=torch.float64))
    (regularizer.strength.largest * value).backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    for callbacks in ([regularizer], []):
        model.load_state_dict(state)
        options = PRECISIONS[precision]()
        model.optimizer, model.options = options.pop("optimizer", torch.optim.SGD), {"lr": 0.0}
        fit_tasks(model, *callbacks, tasks=(2,), max_steps=1, **options)
        seen.append(model.seen)
    scale = 512.0 if "fused" in precision else 1.0  # a fused optimizer unscales within its step
    penalty = torch.cat([(seen[0][name].double() - seen[1][name].double()).flatten() for name in theta]) / scale
    expected = torch.cat([t.grad.flatten() for t in theta.values() if t.grad is not None])
    size = torch.cat([g.flatten() for g in seen[1].values()]).norm() / scale
    assert (penalty - expected).norm() < 1e-6 * (expected.norm() + size)
    assert expected.norm() > 1e-2


def test_a_skipped_training_step_takes_no_penalty() -> None:
    class Skipping(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    model, ewc = Regression(), EWC(DiagonalFisher(), STRENGTH)
    fit_tasks(model, ewc, tasks=(0,))
    skipping = Skipping()
    skipping.load_state_dict(model.state_dict())
    with torch.no_grad():
        skipping.net[0].weight.add_(1.0)
    before = weights(skipping)
    fit_tasks(skipping, ewc, tasks=(1,))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(skipping), strict=True))


def test_a_sparse_gradient_is_refused_by_name() -> None:
    class Sparse(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3, sparse=True)

        def per_sample_loss(self, batch: Any) -> Tensor:
            x, y = batch
            return (self.net(x + self.table(torch.zeros(len(x), dtype=torch.long))) - y).square().mean(1)

    with pytest.raises(TypeError, match="'table.weight' is sparse.*exclude"):
        fit_tasks(Sparse(), L2Init())
