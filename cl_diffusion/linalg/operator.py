"""The interface of a symmetric positive semi-definite operator on parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from cl_diffusion.linalg.parameters import Parameters
from cl_diffusion.linalg.provenance import Provenance

Step = float | Mapping[str, float]


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
    def resolvent(self, vector: Mapping[str, Tensor], step: Step) -> Parameters:
        """``(I + D F)^{-1} v``, where ``D`` is ``step`` times the identity, or diagonal with a step for each parameter.

        A parameter that a mapping does not name has step 0: its entries stay as they are.

        Raises:
            ValueError: a step is negative or not finite.
            NotImplementedError: the resolvent has no closed form.
        """

    @abstractmethod
    def diagonal(self) -> Parameters:
        """The diagonal of ``F``, shaped like the parameters."""

    @abstractmethod
    def trace(self) -> Tensor:
        """``tr F``, a float64 scalar."""

    @abstractmethod
    def largest_eigenvalue(self) -> float:
        """The largest eigenvalue of ``F``; of a sum, the largest of its terms', which is a lower bound."""

    @abstractmethod
    def scaled(self, factor: float) -> Operator:
        """``factor F`` for ``factor >= 0``, of the same provenance."""

    @abstractmethod
    def tensors(self) -> dict[str, Any]:
        """What the constructor takes, for a checkpoint: tensors, dicts of tensors and plain values."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only; ``operator_from_state`` is the inverse."""
        return {"kind": self.kind, "tensors": self.tensors(), "provenance": self.provenance.state()}


def steps_by_name(step: Step, names: Iterable[str]) -> dict[str, float]:
    """A step for each parameter; 0 where a mapping names none.

    Raises:
        ValueError: a step is negative or not finite.
    """
    steps = {name: float(step.get(name, 0.0) if isinstance(step, Mapping) else step) for name in names}
    if bad := {name: value for name, value in steps.items() if not 0 <= value < float("inf")}:
        name, value = next(iter(bad.items()))
        raise ValueError(f"step={value!r} for {name!r}; expected a finite number >= 0")
    return steps


def check_factor(factor: float) -> None:
    """Refuse a factor that would make an operator indefinite."""
    if not 0 <= factor < float("inf"):
        raise ValueError(f"factor={factor!r}; expected a finite number >= 0: F must stay positive semi-definite")
