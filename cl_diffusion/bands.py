"""What a Fisher and a noising process know of bands, so that neither need know the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Bands(ABC):
    """Groups of samples, such as those of similar signal-to-noise ratio."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """One name a band."""

    @abstractmethod
    def __call__(self, batch: Any) -> Tensor:
        """The position of each sample's band among ``names``: integers ``(B,)``; -1 is in none."""

    @abstractmethod
    def describe(self) -> str:
        """Names and edges, equal where bands are."""
