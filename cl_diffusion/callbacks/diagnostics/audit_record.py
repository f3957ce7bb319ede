"""An audit as a file: figures with their intervals, the verdict, and what it is an audit of."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch import LightningModule

from cl_diffusion.linalg import parameters
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.metrics.support import supported, tolerance
from cl_diffusion.metrics.verdict import verdict, verdict_of_damage, verdict_of_steps
from cl_diffusion.version import __version__
from cl_diffusion.whole_files import written_whole


@dataclass
class AuditRecord:
    """What one audit has found.

    Attributes:
        figures: of ``GradientAudit.estimates``, by band and name.
        spectra: by band and matrix (``own``, ``true``), ``lambda_i / trace``, the leading ones.
        preservation: of ``Preservation.estimates``, by band.
        predictions: of ``Preservation.table``, by band.
        damage: of ``Damage.estimates``, by band; empty without a later model.
        determined: of the directions that damage is told by, which are determined by the samples that they were found
            on.
        nonlinearity: by band, how far the predicted noise (else the output) is from the best linear one:
            ``(E|f - f_lin|^2 / E|f|^2)^(1/2)``.
        provenance: of what, by what, with which settings.
    """

    provenance: dict[str, Any]
    figures: dict[str, dict[str, Estimate]]
    spectra: dict[str, dict[str, list[float]]]
    preservation: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    predictions: dict[str, Any] = field(default_factory=dict)
    damage: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    determined: dict[str, bool] = field(default_factory=dict)
    nonlinearity: dict[str, Estimate] = field(default_factory=dict)

    @property
    def verdict(self) -> list[str]:
        """In words: of the directions, of steps along them, and of the damage."""
        said = [*verdict(self.figures), *verdict_of_steps(self.preservation)]
        if self.damage:
            told = {
                band: {name: of[name] for name in of if self.known("damage", band, name)}
                for band, of in self.damage.items()
            }
            said += verdict_of_damage(told, self.provenance["damage"]["task"])
        return said

    def write(self, folder: Path) -> Path:
        """``audit.json`` in the folder; a number that is not finite is null."""
        content = {
            "provenance": self.provenance,
            "verdict": self.verdict,
            "figures": self._entries("figures"),
            "preservation": self._entries("preservation"),
            "damage": self._entries("damage"),
            "nonlinearity": {band: _entry(of, of.known(0.25)) for band, of in self.nonlinearity.items()},
            "spectra": self.spectra,
            "predictions": self.predictions,
        }
        path = folder / "audit.json"
        with written_whole(path) as partial:
            partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
        return path

    def known(self, part: Literal["figures", "preservation", "damage"], band: str, name: str) -> bool:
        """Whether the samples support a figure, and where it is of a direction determine that."""
        if part == "figures":
            return supported(self.figures, band, name)
        _, _, direction = name.partition(" ")
        undetermined = part == "damage" and not self.determined.get(direction, True)
        estimate: Estimate = getattr(self, part)[band][name]
        return estimate.known(tolerance(name)) and not undetermined

    def _entries(self, part: Literal["figures", "preservation", "damage"]) -> dict[str, dict[str, dict[str, Any]]]:
        of_part: dict[str, dict[str, Estimate]] = getattr(self, part)
        return {
            band: {name: _entry(estimate, self.known(part, band, name)) for name, estimate in of.items()}
            for band, of in of_part.items()
        }


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


def _entry(estimate: Estimate, known: bool) -> dict[str, Any]:
    """The figure, its 95 per cent interval, and whether there are samples enough to claim it."""
    low, high = estimate.interval
    return {"value": estimate.value, "low": low, "high": high, "samples": estimate.samples, "known": known}


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
