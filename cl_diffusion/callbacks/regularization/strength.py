"""How strong a penalty is, step by step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.fisher import DiagonalFisher, FisherEstimator
from cl_diffusion.linalg import Operator, Provenance


class Strength(ABC):
    """``lambda`` as a function of the optimizer steps taken in the current task."""

    @abstractmethod
    def at(self, step: int) -> float:
        """``lambda`` before the task's optimizer step number ``step``, counted from 0."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest that ``lambda`` ever is; 0 switches the penalty off."""

    @property
    def reference(self) -> FisherEstimator | None:
        """The estimator whose trace each importance is scaled to have; None leaves importances as they are."""
        return None

    @property
    def scale(self) -> dict[str, str]:
        """What importances are scaled to, as a field of their identity: two scales do not add up."""
        reference = self.reference
        if reference is None:
            return {}
        identity = {field: value for field, value in reference.identity().items() if value != "none"}
        return {"scale": f"trace of {', '.join(identity.values())}"}

    def matched(
        self, operator: Operator, estimated: Callable[[FisherEstimator], Operator]
    ) -> tuple[Operator, dict[str, float]]:
        """The operator at its scale, and what the largest ``lambda`` comes to on the operator as it was.

        The trace is that of the parameters which the operator holds. ``estimated`` gives the reference's estimate; it
        is not asked where the operator is that estimate itself.
        """
        reference = self.reference
        if reference is None:
            return operator, {"resolved_strength": self.largest}
        identity, trace = operator.provenance.identity, float(operator.trace())
        own = "samples_of" not in identity and all(
            identity.get(field) == value for field, value in reference.identity().items()
        )
        target = trace if own else _trace(estimated(reference), operator.names)
        factor = target / trace if trace > 0 else 1.0
        scaled = operator.scaled(factor)
        scaled.provenance = Provenance({**identity, **self.scale}, operator.provenance.record)
        return scaled, {"resolved_strength": self.largest * factor, "loss_trace": target}


class Constant(Strength):
    """The same ``lambda`` at every step.

    Args:
        value: finite and >= 0.

    Raises:
        ValueError: ``value`` is negative or not finite.
    """

    def __init__(self, value: float) -> None:
        self.value = _checked("strength", value)

    @override
    def at(self, step: int) -> float:
        return self.value

    @property
    @override
    def largest(self) -> float:
        return self.value


class TraceMatched(Strength):
    """``lambda tr F_k = multiple * tr G_k``: each importance has a multiple of the trace of the loss's own curvature.

    So strengths carry over between importances of any kind. Both traces are of the parameters that ``F_k`` holds.
    ``G_k`` is estimated at the same weights, on the same
    samples; it costs one estimate more a task, unless the importance is that estimate.

    Args:
        multiple: finite and >= 0.
        reference: what ``G_k`` is. None is ``DiagonalFisher()``: the trace of the empirical Fisher, ``E|g|^2``.
            ``DiagonalFisher(residual="model")`` gives the trace of the generalised Gauss-Newton matrix, the loss's
            expected curvature, of a module that offers an ``output_loss``.

    Raises:
        ValueError: ``multiple`` is negative or not finite.
    """

    def __init__(self, multiple: float = 1.0, reference: FisherEstimator | None = None) -> None:
        self.multiple = _checked("multiple", multiple)
        self._reference = reference or DiagonalFisher()

    @override
    def at(self, step: int) -> float:
        return self.multiple

    @property
    @override
    def largest(self) -> float:
        return self.multiple

    @property
    @override
    def reference(self) -> FisherEstimator:
        return self._reference


class WarmUp(Strength):
    """Linear from 0 over the first ``steps`` optimizer steps of each task, then constant.

    Args:
        strength: what it comes to: a number, ``"auto"``, or another strength.
        steps: > 0.

    Raises:
        ValueError: ``steps`` is not positive.
    """

    def __init__(self, strength: float | Literal["auto"] | Strength, steps: int) -> None:
        if not is_whole(steps, 1):
            raise ValueError(f"steps={steps!r}; expected a positive number of optimizer steps")
        self.strength = as_strength(strength)
        self.steps = steps

    @override
    def at(self, step: int) -> float:
        return self.strength.at(step) * min(1.0, step / self.steps)

    @property
    @override
    def largest(self) -> float:
        return self.strength.largest

    @property
    @override
    def reference(self) -> FisherEstimator | None:
        return self.strength.reference


def as_strength(strength: float | Literal["auto"] | Strength) -> Strength:
    """A number as a constant, ``"auto"`` as ``TraceMatched()``.

    Raises:
        TypeError: something else.
    """
    if isinstance(strength, Strength):
        return strength
    if strength == "auto":
        return TraceMatched()
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(f"strength={strength!r}; expected a finite number >= 0, 'auto', or a Strength such as WarmUp")
    return Constant(strength)


def _trace(operator: Operator, names: Iterable[str]) -> float:
    """Of some parameters: all of them, as a rule."""
    if set(names) >= set(operator.names):
        return float(operator.trace())
    diagonal = operator.diagonal()
    if not set(names) & set(diagonal):
        raise ValueError(
            "reference: it is estimated on none of the parameters that the importance holds, so that there is no trace "
            "to match; let both include the same"
        )
    return float(sum(diagonal[name].sum(dtype=torch.float64) for name in names if name in diagonal))


def _checked(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}; expected a finite number >= 0 (0 switches the penalty off)")
    return float(value)
