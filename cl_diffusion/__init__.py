"""Continual learning of diffusion models in PyTorch Lightning, with regularisers as pluggable callbacks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_diffusion.version import __version__

if TYPE_CHECKING:
    from cl_diffusion.data import ReplayDataModule, TaskDataModule
    from cl_diffusion.modules import DDPM, DistillationMixin, DistilledDDPM, VarianceHeadModule

__all__ = [
    "DDPM",
    "DistillationMixin",
    "DistilledDDPM",
    "ReplayDataModule",
    "TaskDataModule",
    "VarianceHeadModule",
    "__version__",
]

_HOMES = {
    "DDPM": "cl_diffusion.modules",
    "DistillationMixin": "cl_diffusion.modules",
    "DistilledDDPM": "cl_diffusion.modules",
    "ReplayDataModule": "cl_diffusion.data",
    "TaskDataModule": "cl_diffusion.data",
    "VarianceHeadModule": "cl_diffusion.modules",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing one room does not import the others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cl_diffusion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
