"""One Fisher a band of samples, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from cl_diffusion.bands import Bands
from cl_diffusion.fisher.estimator import FisherEstimator, Report
from cl_diffusion.fisher.population import Population, Rows
from cl_diffusion.fisher.sample_mean import require_samples
from cl_diffusion.linalg import Operator, OperatorSum, total
from cl_diffusion.processes import gathered_objects


class BandedFisher(FisherEstimator):
    """``F = sum_b w_b F_b``, ``F_b = E[g g^T | sample in band b]``, each by an estimator of its own.

    With ``weights=None`` a band weighs as much as it has samples, ``w_b = n_b / n`` of those in any band: on the same
    draws the sum of diagonals (or of any exact estimates) is then *exactly* the estimate over all samples. Given
    weights, such as a timestep law's ``P(b)``, agree with that in expectation only; or they choose: ``{"low": 1.0}``
    is a restricted Fisher. A weighting of the estimator is fitted within each band:
    ``BandedFisher(DiagonalFisher(weighting=OutputNormalized( kappa=.01)), bands)`` is the banded IEWC.

    Each band takes the passes of its estimator, and gradients are taken once a sample and pass. The report holds each
    band's samples, trace and share of the trace of ``F``.

    Args:
        estimator: for every band, or one for each name.
        bands: such as ``cl_diffusion.diffusion.SNRBands``; or any callable ``batch -> (B,)`` that gives the position of
            each sample's band among ``names``, -1 for none.
        weights: ``w_b`` by name, finite and >= 0; a band that is left out weighs 0 and is not estimated.
        names: one a band, where ``bands`` has none of its own.

    Raises:
        ValueError: a name is unknown, or a weight is negative or not finite.
    """

    def __init__(
        self,
        estimator: FisherEstimator | Mapping[str, FisherEstimator],
        bands: Bands | Callable[[Any], Tensor],
        weights: Mapping[str, float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.bands = bands
        self.names = tuple(bands.names if isinstance(bands, Bands) else names or ())
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names={names!r} with bands={bands!r}; expected one name a band, all different")
        self.weights = None if weights is None else {name: float(weight) for name, weight in weights.items()}
        by_name = estimator if isinstance(estimator, Mapping) else dict.fromkeys(self.names, estimator)
        for given in (by_name, self.weights or {}):
            if unknown := sorted(set(given) - set(self.names)):
                raise ValueError(f"band {unknown[0]!r} is unknown; expected names among {', '.join(self.names)}")
        bad = {n: w for n, w in (self.weights or {}).items() if not 0 <= w < float("inf")}
        if bad or (self.weights is not None and not any(self.weights.values())):
            raise ValueError(f"weights={self.weights!r}; expected finite numbers >= 0, at least one of them positive")
        self.estimators = {n: e for n, e in by_name.items() if self.weights is None or self.weights.get(n, 0) > 0}
        if missing := [
            n for n, w in (self.weights or dict.fromkeys(self.names, 1.0)).items() if w > 0 and n not in by_name
        ]:
            raise ValueError(
                f"estimator: none is given for band {missing[0]!r}; give one for every band that has a weight"
            )
        super().__init__()  # its settings are those of the bands' estimators

    @property
    @override
    def name(self) -> str:
        named = ", ".join(f"{band}: {estimator.name}" for band, estimator in self.estimators.items())
        same = {estimator.name for estimator in self.estimators.values()}
        return f"banded {same.pop()}" if len(same) == 1 else f"banded ({named})"

    @property
    @override
    def needs_output(self) -> bool:
        return any(estimator.needs_output for estimator in self.estimators.values())

    @override
    def identity(self) -> dict[str, str]:
        bands = self.bands.describe() if isinstance(self.bands, Bands) else ", ".join(self.names)
        weights = "share of samples" if self.weights is None else str(dict(sorted(self.weights.items())))
        by_band = {name: estimator.identity() for name, estimator in self.estimators.items()}
        fields = {field for identity in by_band.values() for field in identity} - {"estimator"}
        found = {field: {name: identity.get(field, "all") for name, identity in by_band.items()} for field in fields}
        same = {field: next(iter(of.values())) for field, of in found.items() if len(set(of.values())) == 1}
        mixed = {
            field: ", ".join(f"{n}: {v}" for n, v in of.items()) for field, of in found.items() if field not in same
        }
        return {"estimator": self.name, **same, **mixed, "bands": bands, "band_weights": weights}

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """That of all its bands; bands of different kinds are a sum of operators."""
        kinds = {estimator.kind for estimator in self.estimators.values()}
        return kinds.pop() if len(kinds) == 1 else OperatorSum.kind

    @override
    def try_out(self, population: Population) -> None:
        if (first := next(population.rows(), None)) is not None:
            self._labels(first)
        for estimator in {id(each): each for each in self.estimators.values()}.values():
            estimator.try_out(population)

    @override
    def compute(self, population: Population) -> tuple[Operator, Report]:
        counts = self._counts(population)
        require_samples(float(counts.sum()))
        parts: dict[str, Operator] = {}
        report: Report = {"samples": float(counts.sum())}
        for position, name in enumerate(self.names):
            if name not in self.estimators:
                continue
            if counts[position] == 0:
                if self.weights is None:
                    continue
                raise ValueError(
                    f"weights={self.weights!r}, but none of the {counts.sum():.0f} samples is in band {name!r}"
                )
            weight = float(counts[position] / counts.sum()) if self.weights is None else self.weights[name]
            operator, found = self.estimators[name].compute(population.restricted(self.bands, position))
            parts[name] = operator.scaled(weight)
            report |= {f"{name}/{key}": value for key, value in {"weight": weight, **found}.items()}
        if not parts:
            raise ValueError(f"none of the {counts.sum():.0f} samples is in a band ({', '.join(self.names)})")
        traces = {name: float(part.trace()) for name, part in parts.items()}
        whole = sum(traces.values())
        report |= {f"{name}/trace_share": trace / whole if whole else 0.0 for name, trace in traces.items()}
        return total(list(parts.values())), report

    def _counts(self, population: Population) -> Tensor:
        """How many samples of all processes each band holds, float64."""
        counts = torch.zeros(len(self.names), dtype=torch.float64)
        for rows in population.rows():
            labels = self._labels(rows)
            counts += torch.bincount(labels[labels >= 0], minlength=len(self.names))
        return torch.stack(gathered_objects(counts)).sum(0)

    def _labels(self, rows: Rows) -> Tensor:
        labels = self.bands(rows.batch).cpu().long()
        if labels.shape != rows.indices.shape or bool((labels >= len(self.names)).any()):
            raise ValueError(
                f"bands gives labels of shape {tuple(labels.shape)} up to {labels.max()} for {len(rows.indices)} "
                f"samples; expected one a sample, below {len(self.names)}, the number of names"
            )
        return labels
