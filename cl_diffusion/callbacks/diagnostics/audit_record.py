"""An audit as a file: figures with their intervals, the verdict, and what it is an audit of."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule

from cl_diffusion.linalg import parameters
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.version import __version__

_MAGNITUDES = ("trace", "perturbation", "gap", "loss", "output", "predicted", "rank", "empirical_to_true", "ratio")
"""Figures that have no scale of their own: known when the interval is small beside them."""


@dataclass
class AuditRecord:
    """What one audit has found.

    Attributes:
        figures: of ``GradientAudit.estimates``, by band and name.
        spectra: by band and matrix (``own``, ``true``), ``lambda_i / trace``, the leading ones.
        preservation: of ``Preservation.estimates``, by band.
        predictions: of ``Preservation.table``, by band.
        damage: of ``Damage.estimates``, by band; empty without a later model.
        nonlinearity: by band, how far the predicted noise (else the output) is from the best linear one:
            ``(E|f - f_lin|^2 / E|f|^2)^(1/2)``.
        verdict: in words.
        provenance: of what, by what, with which settings.
    """

    provenance: dict[str, Any]
    figures: dict[str, dict[str, Estimate]]
    spectra: dict[str, dict[str, list[float]]]
    preservation: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    predictions: dict[str, Any] = field(default_factory=dict)
    damage: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    nonlinearity: dict[str, Estimate] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """``audit.json`` in the folder; a number that is not finite is null."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "provenance": self.provenance,
            "verdict": self.verdict,
            "figures": _entries(self.figures),
            "preservation": _entries(self.preservation),
            "damage": _entries(self.damage),
            "nonlinearity": {band: _entry("nonlinearity", of) for band, of in self.nonlinearity.items()},
            "spectra": self.spectra,
            "predictions": self.predictions,
        }
        path = folder / "audit.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
        partial.replace(path)
        return path


def described(module: LightningModule) -> dict[str, Any]:
    """What was audited, and by which versions."""
    weights = parameters.trainable_parameters(module)
    return {
        "loss": dict(getattr(module, "loss_identity", None) or {}),
        "module": type(module).__name__,
        "parameters": sum(p.numel() for p in weights.values()),
        "dtype": str(next(iter(weights.values())).dtype),
        "versions": {
            "cl_diffusion": __version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
    }


def _entries(figures: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {band: {name: _entry(name, estimate) for name, estimate in of.items()} for band, of in figures.items()}


def _entry(name: str, estimate: Estimate) -> dict[str, Any]:
    """The figure, its 95 per cent interval, and whether there are samples enough to claim it."""
    low, high = estimate.interval
    return {
        "value": estimate.value,
        "low": low,
        "high": high,
        "samples": estimate.samples,
        "known": estimate.known(tolerance(name)),
    }


def tolerance(name: str) -> float | None:
    """How wide the interval of a figure may be to either side for it to be known; None: half of the figure itself."""
    magnitude = any(part in name for part in _MAGNITUDES) and "share" not in name and "correlation" not in name
    return None if magnitude else 0.25


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
