"""Whatever number an argument is given, what is built works or the argument is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from cl_diffusion.callbacks import (
    EWC,
    L2SP,
    MAS,
    ContinualBackprop,
    ContinualMetrics,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SynapticIntelligence,
)
from cl_diffusion.callbacks.regularization.strength import Constant, TraceMatched, WarmUp
from cl_diffusion.data import ClassBalancedBuffer, MixedReplay, ReservoirBuffer
from cl_diffusion.diffusion import Denoiser, NoiseSchedule, SNRBand, SNRBands
from cl_diffusion.diffusion.samplers import (
    AncestralSampler,
    ClassifierFreeGuidance,
    DDIMSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    Sampler,
)
from cl_diffusion.fisher import (
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputNormalized,
)
from tests.outcome import outcome

NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, 1.0, 2.5, -0.5, 1e-320, 1e308, 10**9, 10**30]),
)
ANY = settings(max_examples=25, deadline=None, derandomize=True)


class Shrinking(nn.Module):
    """A network that any sampler can draw from."""

    def forward(self, x_t: Any, t: Any, labels: Any = None) -> Any:
        return 0.5 * torch.tanh(x_t)


def drawn(sampler: Sampler) -> Any:
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(Shrinking(), NoiseSchedule.linear(12, 1e-3, 0.3))
    images = sampler.sample(denoiser, (1, 2, 2), num_images=2, generator=generator)
    assert images.shape == (2, 1, 2, 2)
    assert bool(images.isfinite().all())
    return images


def strength(value: Any) -> Any:
    found = EWC(MeanGradientFisher(), strength=value)
    assert all(0 <= found.strength.at(step) < math.inf for step in range(3))
    return found


REGULARIZERS: dict[str, Callable[..., Any]] = {
    "strength of EWC": strength,
    "strength of MAS": lambda value: MAS(strength=value),
    "strength of L2": lambda value: L2SP(strength=value),
    "strength of SI": lambda value: SynapticIntelligence(strength=value),
    "damping": lambda value: SynapticIntelligence(damping=value),
    "gamma": lambda value: EWC(MeanGradientFisher(), memory="online", gamma=value),
    "max_rank": lambda value: EWC(MeanGradientFisher(), max_rank=value),
    "epochs_per_task": lambda value: EWC(MeanGradientFisher(), epochs_per_task=value),
    "multiple": TraceMatched,
    "strength": Constant,
    "steps": lambda value: WarmUp(1.0, steps=value),
}
PLASTICITY: dict[str, Callable[..., Any]] = {
    "threshold of ReDo": lambda value: ReDo(threshold=value),
    "every_n_steps of ReDo": lambda value: ReDo(every_n_steps=value),
    "rate": lambda value: ContinualBackprop(rate=value),
    "maturity": lambda value: ContinualBackprop(maturity=value),
    "decay": lambda value: ContinualBackprop(decay=value),
    "threshold": lambda value: SelfNormalizedResets(threshold=value),
    "initial_age": lambda value: SelfNormalizedResets(initial_age=value),
    "max_age": lambda value: SelfNormalizedResets(max_age=value),
    "tasks_per_update": lambda value: SelfNormalizedResets(tasks_per_update=value),
    "floor": lambda value: SelfNormalizedResets(firing="magnitude", floor=value),
    "shrink": lambda value: ShrinkAndPerturb(shrink=value),
    "perturb": lambda value: ShrinkAndPerturb(perturb=value),
    "every_n_steps": lambda value: ShrinkAndPerturb(every_n_steps=value),
    "seed": lambda value: ShrinkAndPerturb(seed=value),
}
METRICS: dict[str, Callable[..., Any]] = {
    "images_per_class": lambda value: ContinualMetrics(images_per_class=value),
    "loss_draws": lambda value: ContinualMetrics(loss_draws=value),
    "batch_size": lambda value: ContinualMetrics(batch_size=value),
}
FISHERS: dict[str, Callable[..., Any]] = {
    "rank": lambda value: LeadingEigenpairsFisher(rank=value),
    "tau": lambda value: OutputNormalized(tau=value),
    "kappa": lambda value: OutputNormalized(kappa=value),
}
DIFFUSION: dict[str, Callable[..., Any]] = {
    "steps of a schedule": lambda value: NoiseSchedule.linear(value),
    "steps of a cosine": lambda value: NoiseSchedule.cosine(value),
    "beta_start": lambda value: NoiseSchedule.linear(10, value, 0.9),
    "beta_end": lambda value: NoiseSchedule.linear(10, 1e-4, value),
    "max_beta": lambda value: NoiseSchedule.cosine(10, value),
    "low": lambda value: SNRBand("a", value, 1.0),
    "high": lambda value: SNRBand("a", 0.0, value),
    "quantiles": lambda value: SNRBands.by_quantile([value], ["low", "high"]),
    "timesteps": lambda value: SNRBands.at_timesteps([value], NoiseSchedule.linear(10)),
    "steps of DDIM": lambda value: drawn(DDIMSampler(steps=value)),
    "eta": lambda value: drawn(DDIMSampler(steps=2, eta=value)),
    "steps of the chain": lambda value: drawn(AncestralSampler(steps=value)),
    "probes of Hutchinson": lambda value: drawn(HutchinsonSampler(steps=2, probes=value)),
    "lanczos_steps": lambda value: drawn(LanczosGaussianSampler(steps=2, lanczos_steps=value)),
    "clip_pixel": lambda value: drawn(LanczosGaussianSampler(steps=2, clip_pixel=value)),
    "scale": lambda value: ClassifierFreeGuidance(DDIMSampler(steps=2), scale=value),
}
REPLAY: dict[str, Callable[..., Any]] = {
    "images": lambda value: ReservoirBuffer(images=value),
    "bytes": lambda value: ClassBalancedBuffer(bytes=value),
    "shares": lambda value: MixedReplay([ReservoirBuffer(images=1), ReservoirBuffer(images=1)], shares=[value, 1.0]),
}
EVERY = {**REGULARIZERS, **PLASTICITY, **METRICS, **FISHERS, **DIFFUSION, **REPLAY}
WHOLE = {
    "max_rank",
    "epochs_per_task",
    "steps",
    "every_n_steps of ReDo",
    "maturity",
    "initial_age",
    "max_age",
    "tasks_per_update",
    "every_n_steps",
    "seed",
    *METRICS,
    "rank",
    "steps of a schedule",
    "steps of a cosine",
    "timesteps",
    "steps of DDIM",
    "steps of the chain",
    "probes of Hutchinson",
    "lanczos_steps",
    "images",
    "bytes",
}
NAMED_OTHERWISE = {"beta_start": "beta", "beta_end": "beta", "max_beta": "beta"}
"""Rounding can make a schedule of good numbers bad, which is said of what they come to."""
BEYOND_MEMORY = {"steps of a schedule", "steps of a cosine", "probes of Hutchinson"}


@pytest.mark.parametrize("argument", EVERY)
@ANY
@given(NUMBERS)
@example(0)
@example(-1)
@example(1)
@example(math.nan)
@example(math.inf)
@example(2.5)
def test_a_number_is_served_or_refused_by_the_name_of_its_argument(argument: str, value: float) -> None:
    if argument in BEYOND_MEMORY and value in (10**9, 10**30):
        return
    name = argument.partition(" ")[0]
    served = outcome(lambda: EVERY[argument](value), NAMED_OTHERWISE.get(name, name))
    assert served is None or argument not in WHOLE or isinstance(value, int), f"{name}={value!r} is no whole number"
