"""What an operator is an estimate of, carried by every operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Identity, which must match for operators to be combined, and a record of how each estimate came about.

    Args:
        identity: field -> value, for example ``{"estimator": "diagonal", "loss_reduction": "mean over elements"}``. A
            penalty weight means nothing without it.
        record: one mapping an estimate: samples, seed, task, and what the estimator reports of itself.
    """

    identity: Mapping[str, str] = field(default_factory=dict)
    record: tuple[Mapping[str, Any], ...] = ()

    def combined(self, other: Provenance) -> Provenance:
        """The provenance of a sum: the common identity, and both records.

        Raises:
            ValueError: the identities differ; the message names the field and both values.
        """
        for name in sorted(self.identity.keys() | other.identity.keys()):
            mine, theirs = self.identity.get(name), other.identity.get(name)
            if mine != theirs:
                raise ValueError(
                    f"operators of different provenance cannot be combined: {name!r} is {mine!r} in one and {theirs!r} "
                    "in the other; estimate both in the same way, or keep them in separate callbacks"
                )
        return Provenance(self.identity, self.record + other.record)

    def require(self, identity: Mapping[str, str]) -> None:
        """Refuse an operator that is an estimate of something else.

        Raises:
            ValueError: a field of ``identity`` differs here; the message names the field and both values.
        """
        for name, expected in identity.items():
            if self.identity.get(name) != expected:
                raise ValueError(
                    f"the operator is an estimate of something else: {name!r} is {self.identity.get(name)!r}, expected "
                    f"{expected!r}; estimate it anew, or use the settings that it was made with"
                )

    def state(self) -> dict[str, Any]:
        """Plain dicts and lists, for a checkpoint."""
        return {"identity": dict(self.identity), "record": [dict(entry) for entry in self.record]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Provenance:
        """The inverse of ``state``."""
        return cls(dict(state["identity"]), tuple(dict(entry) for entry in state["record"]))
