"""The interface of a symmetric positive semi-definite operator on parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance


class Operator(ABC):
    """A symmetric positive semi-definite matrix ``F`` of size P x P, never formed.

    Vectors are ``dict[str, Tensor]`` keyed by parameter names. A vector may hold more parameters than the operator:
    the rest is ignored, and products hold the operator's names only. A missing parameter is a ``ValueError``.
    """

    kind: ClassVar[str]
    provenance: Provenance

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parameters that the operator acts on."""

    @abstractmethod
    def __matmul__(self, vector: Mapping[str, Tensor]) -> Parameters:
        """``F v``."""

    @abstractmethod
    def quadratic(self, vector: Mapping[str, Tensor]) -> Tensor:
        """``v^T F v``, a float64 scalar."""

    @abstractmethod
    def resolvent(self, vector: Mapping[str, Tensor], step: float) -> Parameters:
        """``(I + step F)^{-1} v``.

        Raises:
            ValueError: ``step`` is negative or not finite.
            NotImplementedError: the resolvent has no closed form.
        """

    @abstractmethod
    def diagonal(self) -> Parameters:
        """The diagonal of ``F``, shaped like the parameters."""

    @abstractmethod
    def trace(self) -> Tensor:
        """``tr F``, a float64 scalar."""

    @abstractmethod
    def scaled(self, factor: float) -> Operator:
        """``factor F`` for ``factor >= 0``, of the same provenance."""

    @abstractmethod
    def tensors(self) -> dict[str, Any]:
        """What the constructor takes, for a checkpoint: tensors, dicts of tensors and plain values."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only; ``operator_from_state`` is the inverse."""
        return {"kind": self.kind, "tensors": self.tensors(), "provenance": self.provenance.state()}


def check_step(step: float) -> None:
    """Refuse a resolvent step that is negative or not finite."""
    if not 0 <= step < float("inf"):
        raise ValueError(f"step={step!r}; expected a finite number >= 0")


def check_factor(factor: float) -> None:
    """Refuse a factor that would make an operator indefinite."""
    if not 0 <= factor < float("inf"):
        raise ValueError(f"factor={factor!r}; expected a finite number >= 0: F must stay positive semi-definite")
