"""Several sources of replay at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from cl_diffusion.data.replay_source import OldTasks, Pool, ReplaySource


class MixedReplay(ReplaySource):
    """Each source gives its share of the replay.

    Args:
        sources: at least one.
        shares: a positive number each, in proportion; equal where not given.

    Raises:
        ValueError: there is no source, or not one positive share each.
    """

    def __init__(self, sources: list[ReplaySource], shares: Sequence[float] | None = None) -> None:
        shares = [1.0] * len(sources) if shares is None else list(shares)
        if not sources or len(shares) != len(sources) or min(shares) <= 0:
            raise ValueError(f"{len(sources)} sources with shares={shares}; expected one positive share each")
        self.sources = sources
        self.shares = [share / sum(shares) for share in shares]

    @override
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        return [
            (share * part, samples)
            for share, source in zip(self.shares, self.sources, strict=True)
            for part, samples in source.pools(old, trainer)
        ]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {str(position): source.state_dict() for position, source in enumerate(self.sources)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for position, source in enumerate(self.sources):
            source.load_state_dict(state[str(position)])
