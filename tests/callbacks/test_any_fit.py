"""Whatever data, learning rate or strength a fit is given, it ends with finite weights or one clear error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.callbacks import (
    EWC,
    L2SP,
    MAS,
    ContinualBackprop,
    L2Init,
    PlasticityMetrics,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SynapticIntelligence,
    TaskCallback,
)
from cl_diffusion.fisher import DiagonalFisher, KroneckerFisher, MeanGradientFisher
from tests.callbacks.stranger import Regression, trainer
from tests.callbacks.test_unit_resets import Rectified
from tests.outcome import outcome

Makes = Callable[[float], Callback]
REGULARIZERS: dict[str, Makes] = {
    "EWC": lambda strength: EWC(DiagonalFisher(), strength=strength),
    "EWC, rank one": lambda strength: EWC(MeanGradientFisher(), strength=strength),
    "EWC, Kronecker": lambda strength: EWC(KroneckerFisher(), strength=strength),
    "EWC, proximal": lambda strength: EWC(DiagonalFisher(), strength=strength, mode="proximal"),
    "MAS": lambda strength: MAS(strength=strength),
    "SI": lambda strength: SynapticIntelligence(strength=strength),
    "L2SP": lambda strength: L2SP(strength=strength),
    "L2Init": lambda strength: L2Init(strength=strength),
}
RESETS: dict[str, Makes] = {
    "ReDo": lambda _: ReDo(every_n_steps=1, threshold=0.5),
    "Continual Backprop": lambda _: ContinualBackprop(rate=0.5, maturity=1),
    "Self-Normalized Resets": lambda _: SelfNormalizedResets(initial_age=4, tasks_per_update=1),
    "counting": lambda _: SelfNormalizedResets(variant="counting"),
    "Plasticity": lambda _: PlasticityMetrics(),
    "Shrink and Perturb": lambda _: ShrinkAndPerturb(),
}
CALLBACKS = {**REGULARIZERS, **RESETS}
VALUES = [0.0, 1.0, math.nan, math.inf, 1e20, 1e38]
OF_THE_FIT = r"not finite|finite numbers|finite and >= 0|overflow"


class Guard(TaskCallback):
    """Callbacks that remember nothing of a task let one end whose weights are not finite; this one does not."""

    needs_finite_weights = True


class Named(Regression):
    """With an output, for sensitivities."""

    def forward(self, x: Any) -> Any:
        return self.net(x[0] if isinstance(x, (list, tuple)) else x)


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where tables are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fits"))
        yield


def batches(value: float, samples: int, constant: bool, size: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.full((samples, 3), 0.5) if constant else torch.randn(samples, 3, generator=generator)
    y = x.sum(1, keepdim=True)
    x[-1, 0] = value
    return DataLoader(TensorDataset(x, y), batch_size=size)


def fitted(callback: Callback, data: DataLoader[Any], rate: float, *others: Callback) -> Any:
    """Two tasks of the same data."""
    model = (Rectified if isinstance(callback, tuple(type(make(1.0)) for make in RESETS.values())) else Named)(lr=rate)
    for _ in range(2):
        trainer(callback, *others, max_epochs=2).fit(model, data)
    for name, weight in model.named_parameters():
        assert bool(weight.isfinite().all()), name
    return model


@pytest.mark.parametrize("callback", [name for name in CALLBACKS if name != "Shrink and Perturb"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.sampled_from(VALUES),
    st.sampled_from([1, 2, 7]),
    st.booleans(),
    st.sampled_from([1, 4, 100]),
    st.sampled_from([0.05, 1e-30, 1e4]),
    st.sampled_from([0.0, 1.0, 1e12, 1e30]),
)
@example(math.nan, 7, False, 4, 0.05, 1.0)
@example(1.0, 1, False, 4, 0.05, 1.0)
@example(1.0, 7, True, 4, 0.05, 1e30)
@example(1.0, 7, False, 4, 0.05, 1.0)
def test_a_fit_ends_finite_or_says_that_it_does_not(
    callback: str, value: float, samples: int, constant: bool, size: int, rate: float, strength: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = outcome(
            lambda: fitted(CALLBACKS[callback](strength), batches(value, samples, constant, size), rate, Guard()),
            OF_THE_FIT,
        )
    moderate = value <= 1 and rate == 0.05 and strength <= 1
    assert model is not None or not moderate


@pytest.mark.parametrize("callback", REGULARIZERS)
def test_a_task_does_not_end_with_weights_that_are_not_finite(callback: str) -> None:
    with pytest.raises(FloatingPointError, match=r"task 1 ends with weights that are not finite, first of parameter"):
        fitted(CALLBACKS[callback](1.0), batches(math.nan, 7, False, 4), 0.05)
