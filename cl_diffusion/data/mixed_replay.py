"""Several sources of replay at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from typing_extensions import override

from cl_diffusion.data.replay_source import OldTasks, Pool, ReplaySource
from cl_diffusion.keys import derive_keys


class MixedReplay(ReplaySource):
    """Each source gives its share of the replay; two of a kind draw independently.

    Args:
        sources: at least one.
        shares: a positive number each, in proportion; equal where not given.

    Raises:
        ValueError: there is no source, or not one positive share each.
    """

    def __init__(self, sources: list[ReplaySource], shares: Sequence[float] | None = None) -> None:
        shares = [1.0] * len(sources) if shares is None else list(shares)
        if not sources or len(shares) != len(sources) or not all(0 < share < math.inf for share in shares):
            raise ValueError(f"{len(sources)} sources with shares={shares}; expected one positive share each")
        self.sources = sources
        self.shares = [share / sum(shares) for share in shares]

    @override
    def pools(self, old: OldTasks, trainer: Trainer | None) -> list[Pool]:
        found: list[Pool] = []
        for position, (share, source) in enumerate(zip(self.shares, self.sources, strict=True)):
            seed = int(derive_keys(old.seed, torch.tensor([position]), purpose="mixture"))
            found += [(share * part, samples) for part, samples in source.pools(replace(old, seed=seed), trainer)]
        return found

    @property
    @override
    def name(self) -> str:
        return f"{type(self).__name__}({', '.join(source.name for source in self.sources)})"

    @override
    def begin(self, last: OldTasks) -> None:
        for source in self.sources:
            source.begin(last)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {str(position): source.state_dict() for position, source in enumerate(self.sources)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for position, source in enumerate(self.sources):
            source.load_state_dict(state[str(position)])
