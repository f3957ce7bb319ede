"""The interface of an importance estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypedDict, get_args

import torch

from cl_diffusion.fisher.drawn import Drawn
from cl_diffusion.fisher.population import Population
from cl_diffusion.fisher.repeatable import require_repeatable
from cl_diffusion.fisher.residual import RESIDUALS, ResidualName
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.fisher.weighting import Undetermined, Weighting
from cl_diffusion.linalg import Operator, parameters

Report = dict[str, Any]

NEEDS_WHOLE = (
    "takes gradients of single samples, which cannot be had from shards; use SketchedDiagonalFisher(), or "
    "MeanGradientFisher(coefficient='plain'), without a weighting"
)


class Settings(TypedDict, total=False):
    """What every estimator takes besides its own arguments; see ``FisherEstimator``."""

    residual: ResidualName
    weighting: Weighting | None
    include: Sequence[str]
    exclude: Sequence[str]
    dtype: torch.dtype
    offload: bool


class FisherEstimator(ABC):
    """An estimate of a second moment ``F = (1/n) sum_i a_i g_i g_i^T`` of per-sample gradients.

    A leaf passes over ``samples(population)``, fills its sums, reduces them over processes (an all-reduce of what it
    declares, never a gathering of vectors as long as the parameters), and returns an operator. It holds configuration
    only: no state survives ``compute``.

    Args:
        residual: whose gradients. ``"empirical"``: of the training loss. ``"model"``: of the loss at a target drawn
            from the model, so that ``F`` is the true Fisher, in expectation the generalised Gauss-Newton matrix.
            ``"expectation"``: the same without sampling, at one backward an outcome (a class; an output element of a
            squared error). ``"negated_logits"``: EWC-DR. All but the first need an ``OutputLoss``.
        weighting: the ``a_i``, such as ``OutputNormalized``; None is ones.
        include: glob patterns of parameter names; a parameter takes part if one fits.
        exclude: glob patterns of parameter names that take no part.
        dtype: of sums over samples; operators have the parameters' own type.
        offload: keep sums over samples on the CPU.

    Raises:
        ValueError: unknown residual, or one that the weighting does not go with.
    """

    kind: str | None = None
    """The ``kind`` of its operators, where that is known before one is computed."""
    compares_passes: bool = False
    """Whether it passes over the samples several times and a loss must be the same in each."""

    def __init__(
        self,
        *,
        residual: ResidualName = "empirical",
        weighting: Weighting | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        dtype: torch.dtype = torch.float64,
        offload: bool = False,
    ) -> None:
        if residual not in RESIDUALS:
            raise ValueError(f"residual={residual!r}; expected one of {', '.join(map(repr, get_args(ResidualName)))}")
        if residual == "expectation" and weighting is not None:
            raise ValueError(
                "residual='expectation' sums over outcomes and has no residual that a weighting could look at; use "
                "residual='model', or weighting=None"
            )
        if weighting is not None and not isinstance(weighting, Weighting):
            raise TypeError(
                f"weighting={weighting!r}; expected a Weighting, such as OutputNormalized(tau=1e-3), or None"
            )
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype!r}; expected a floating-point torch.dtype, such as torch.float64")
        self.residual = RESIDUALS[residual]
        self.weighting = weighting
        self.include = parameters.as_patterns(include)
        self.exclude = parameters.as_patterns(exclude)
        self.dtype = dtype
        self.offload = offload

    @property
    @abstractmethod
    def name(self) -> str:
        """Which matrix this is, for the provenance."""

    @abstractmethod
    def compute(self, population: Population) -> tuple[Operator, Report]:
        """The operator, and what the estimator reports of its own sampling error (with the key ``samples``)."""

    @property
    def needs_output(self) -> bool:
        """Whether the loss must be an ``OutputLoss``."""
        return self.residual.needs_output or (self.weighting is not None and self.weighting.needs_output)

    @property
    def takes_sums_alone(self) -> bool:
        """Whether sums of gradients over batches are all that it takes, as they are had of sharded parameters."""
        return False

    def identity(self) -> dict[str, str]:
        """What makes two estimates comparable: estimator, residual, weighting and whatever else defines the matrix."""
        selected = parameters.described_selection(self.include, self.exclude)
        weighting = "none" if self.weighting is None else self.weighting.describe()
        return {"estimator": self.name, "residual": self.residual.name, "weighting": weighting, **selected}

    def selects(self, name: str) -> bool:
        """Whether a parameter takes part."""
        return parameters.fits(name, self.include, self.exclude)

    def samples(self, population: Population) -> tuple[Samples, Report]:
        """The samples with this estimator's residual and weights, and what fitting the weights has found."""
        plain = self._unweighted(population)
        if plain.gradients.sharded and not self.takes_sums_alone:
            raise ValueError(f"the parameters are sharded, and {self.name} {NEEDS_WHOLE}")
        return (plain, {}) if self.weighting is None else self.weighting.fitted(plain)

    def try_out(self, population: Population) -> None:
        """Raise what ``compute`` would raise for reasons that a few samples show; only their first batch is tried.

        A loss of another shape, an output that the loss does not name, a geometry or a gradient that does not fit. What
        other samples could mend is no reason: residuals or weights that are all zero.
        """
        try:
            samples, _ = self.samples(population)
        except Undetermined:
            samples = self._unweighted(population)
        if (first := next(samples.drawn(), None)) is not None:
            self.try_on(samples, first)
        if self.compares_passes:
            require_repeatable(samples)

    def try_on(self, samples: Samples, drawn: Drawn) -> None:
        """Take the kind of gradients that ``compute`` takes, on one batch of this process alone."""
        samples.summed(drawn)

    def _unweighted(self, population: Population) -> Samples:
        return Samples(population, self.residual, self.selects, self.dtype, self.offload)
