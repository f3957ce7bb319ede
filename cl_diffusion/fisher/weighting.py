"""Weights on samples: ``F = (1/n) sum_i a_i g_i g_i^T``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.fisher.criterion import OutputLoss
from cl_diffusion.fisher.diversity import residual_diversity
from cl_diffusion.fisher.sample_loss import Terms
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.processes import gathered

Geometry = Literal["euclidean", "wasserstein", "sliced"]
Importance = Literal["uniform", "hessian_trace", "residual_diversity"]


class Undetermined(ValueError):
    """Something that these samples do not determine, and others may: all of their weights or residuals are zero."""


class Weighting(ABC):
    """Turns samples into weighted samples."""

    @property
    @abstractmethod
    def needs_output(self) -> bool:
        """Whether the loss must be an ``OutputLoss``."""

    @abstractmethod
    def describe(self) -> str:
        """The weighting in words, equal where weights are comparable."""

    @abstractmethod
    def fitted(self, samples: Samples) -> tuple[Samples, dict[str, float]]:
        """The samples with their weights ``a_i``, after passes over them where those are needed; and what was found."""


class GivenWeights(Weighting):
    """``a_i = h_i / mean(h)`` with ``h = weights(batch)``, shape ``(B,)``, finite and >= 0.

    Args:
        weights: of a drawn batch.
        name: what the provenance calls them.
    """

    def __init__(self, weights: Callable[[Any], Tensor], name: str = "given") -> None:
        if not callable(weights):
            raise TypeError(f"weights={weights!r}; expected a callable, batch -> one weight a sample")
        self.weights = weights
        self.name = name

    @property
    @override
    def needs_output(self) -> bool:
        return False

    @override
    def describe(self) -> str:
        return f"sample weights, {self.name}"

    @override
    def fitted(self, samples: Samples) -> tuple[Samples, dict[str, float]]:
        def importance(terms: Terms) -> Tensor:
            return self.weights(terms.inputs.batch)

        mean = _mean(samples, importance)
        return samples.weighted(lambda terms: importance(terms) / mean), {"mean_sample_weight": mean}


class OutputNormalized(Weighting):
    """``a_i = h_i / (s_i + tau) / mean(h)``: each old sample's *output* is kept, not its likelihood (IEWC).

    The loss of sample i changes by ``g_i^T d = r_i^T df_i`` to first order, ``r_i = dl_i/df_i``; dividing by the size
    of the residual, ``s_i = r_i^T G^+ r_i``, turns that into a displacement of the output, measured by ``G`` (Wiest
    2026, 2611.16039). It goes with every estimator; an estimator of one band normalises within the band.

    Geometries ``G``, for outputs of shape ``(B, ...)``:

    - ``"euclidean"``: ``s = |r|^2``, the sum over all elements. For a mean squared error over d elements it is
      ``(4/d) l``, and ``elements=d`` takes it from the loss alone.
    - ``"wasserstein"``: along the last axis, of length n; ``s`` is the mean over the other axes of
      ``(n - 1) sum_j (r_{j+1} - r_j)^2``, the dual of the cumulative-sum metric on the zero-sum tangent.
    - ``"sliced"``: for images, the mean of that over all rows and all columns.

    Importances ``h``: ``"uniform"``; ``"hessian_trace"``, ``tr d^2 l/df^2``, for classification;
    ``"residual_diversity"``: the part of a sample's unit gradient that those of at most 64 others do not span,
    squared; or a callable of the drawn batch.

    Args:
        tau: absolute, > 0 (published: 1e-2 for classification, 1e-3 for diffusion).
        kappa: ``tau = kappa * median{s_i : s_i > 0}`` instead, at the price of a forward pass over the samples.
        geometry: of the output.
        importance: ``h``.
        elements: the number ``d`` of elements that a plain ``loss(model, batch)`` is the mean squared error of.

    Raises:
        ValueError: not exactly one of ``tau`` and ``kappa``, or a value out of range.
    """

    def __init__(
        self,
        tau: float | None = None,
        kappa: float | None = None,
        geometry: Geometry = "euclidean",
        importance: Importance | Callable[[Any], Tensor] = "uniform",
        elements: int | None = None,
    ) -> None:
        given = tau if kappa is None else kappa
        if (tau is None) == (kappa is None) or given is None or not (given > 0 and math.isfinite(given)):
            raise ValueError(f"tau={tau!r}, kappa={kappa!r}; expected exactly one of them, finite and > 0")
        if geometry not in get_args(Geometry):
            raise ValueError(f"geometry={geometry!r}; expected one of {', '.join(map(repr, get_args(Geometry)))}")
        if not callable(importance) and importance not in get_args(Importance):
            raise ValueError(
                f"importance={importance!r}; expected {', '.join(map(repr, get_args(Importance)))} or a callable"
            )
        if elements is not None and (elements < 1 or geometry != "euclidean"):
            raise ValueError(f"elements={elements!r}, geometry={geometry!r}; expected >= 1, with geometry='euclidean'")
        self.tau = tau
        self.kappa = kappa
        self.geometry: Geometry = geometry
        self.importance = importance
        self.elements = elements

    @property
    @override
    def needs_output(self) -> bool:
        return self.elements is None or self.importance == "hessian_trace"

    @override
    def describe(self) -> str:
        floor = f"tau={self.tau:g}" if self.tau is not None else f"kappa={self.kappa:g}"
        named = self.importance if isinstance(self.importance, str) else "given"
        return f"output-normalised, {self.geometry}, {floor}, {named} importance"

    @override
    def fitted(self, samples: Samples) -> tuple[Samples, dict[str, float]]:
        sizes, tau = self.size, self.tau
        if tau is None:
            assert self.kappa is not None
            tau = self.kappa * _positive_median(samples, sizes)
        table = residual_diversity(samples) if self.importance == "residual_diversity" else None
        keyed = samples.weighted(_ones, table) if table is not None else samples
        uniform = self.importance == "uniform"
        mean = 1.0 if uniform else _mean(keyed, self._importances)
        floor = float(tau)

        def weights(terms: Terms) -> Tensor:
            h = 1.0 if uniform else self._importances(terms)
            return h / (sizes(terms) + floor) / mean

        return samples.weighted(weights, table), {"tau": floor} | ({} if uniform else {"mean_importance": mean})

    def size(self, terms: Terms) -> Tensor:
        """``s_i``, shape ``(B,)``."""
        if self.elements is not None:
            if isinstance(terms.loss, OutputLoss):
                raise ValueError(
                    f"elements={self.elements} is for a plain loss; an OutputLoss says its elements itself"
                )
            return 4 / self.elements * terms.losses.detach()
        r = terms.output_gradient()
        if self.geometry == "euclidean":
            return r.square().reshape(len(r), -1).sum(1)
        if self.geometry == "wasserstein":
            return _difference_energy(r, -1)[0]
        (rows, num_rows), (columns, num_columns) = _difference_energy(r, -1), _difference_energy(r, -2)
        return (rows * num_rows + columns * num_columns) / (num_rows + num_columns)

    def _importances(self, terms: Terms) -> Tensor:
        if callable(self.importance):
            return self.importance(terms.inputs.batch)
        if self.importance == "residual_diversity":
            assert terms.inputs.importance is not None
            return terms.inputs.importance
        if not isinstance(terms.loss, OutputLoss) or terms.output is None:
            raise ValueError(f"importance='hessian_trace' needs an OutputLoss; loss={terms.loss!r} is none")
        return terms.loss.criterion.hessian_trace(terms.output)


def _difference_energy(r: Tensor, axis: int) -> tuple[Tensor, int]:
    """The mean over slices of ``(n - 1) sum_j (r_{j+1} - r_j)^2`` along an axis, ``(B,)``; and how many slices."""
    if r.ndim + axis < 1 or r.shape[axis] < 2:
        raise ValueError(
            f"output has shape {tuple(r.shape)}; geometry='wasserstein' takes differences along the last axis and "
            f"'sliced' along the last two: axis {axis} needs two entries or more, beside the axis of samples; use "
            "geometry='euclidean'"
        )
    energy = (r.shape[axis] - 1) * r.diff(dim=axis).square().flatten(1).sum(1)
    slices = r[0].numel() // r.shape[axis]
    return energy / slices, slices


def _ones(terms: Terms) -> Tensor:
    return torch.ones_like(terms.losses)


def _mean(samples: Samples, value: Callable[[Terms], Tensor]) -> float:
    """The mean over all samples of all processes; refused where it is no weight."""
    sums = torch.zeros(2, dtype=torch.float64, device=samples.device)
    for drawn in samples.drawn():
        values = value(samples.terms(drawn)).double()
        if not bool(((values >= 0) & values.isfinite()).all()):
            raise ValueError(
                f"sample weights range over [{values.min():g}, {values.max():g}]; expected finite and >= 0"
            )
        sums += torch.stack([values.sum(), values.new_tensor(float(len(values)))])
    samples.all_reduce({"sums": sums})
    total, count = sums.tolist()
    if total <= 0:
        raise Undetermined(f"the weights of {count:.0f} samples sum to {total:g}; expected a positive sum")
    return float(total / count)


def _positive_median(samples: Samples, size: Callable[[Terms], Tensor]) -> float:
    values = torch.cat([size(samples.terms(drawn)).double().cpu() for drawn in samples.drawn()] or [torch.zeros(0)])
    values = gathered(values)
    values = values[values > 0].sort().values
    if len(values) == 0:
        raise Undetermined("every residual is exactly zero, so kappa * median{s_i : s_i > 0} is not defined; give tau")
    return float((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2)
