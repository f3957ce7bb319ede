"""How much each unit is worth to the network, by what it gives and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_diffusion.plasticity.units import Slice, Units

Utility = Literal["contribution", "adaptable"]
_EPSILON = 1e-9


def dormancy(magnitudes: Tensor) -> Tensor:
    """``E|h_i| / (mean over the layer of E|h| + 1e-9)`` (ReDo, Sokar et al. 2023, 2302.12902): 0 is dormant."""
    return magnitudes / (magnitudes.mean() + _EPSILON)


def mean_size(tensors: dict[str, Tensor], parts: Sequence[Slice], count: int) -> Tensor:
    """``mean |w|`` of each unit over all its entries in the given slices, ``(count,)``."""
    entries = [part.of(tensors[part.tensor], count).reshape(count, -1).abs() for part in parts]
    return torch.cat(entries, 1).mean(1)


class LeastUseful:
    """Utilities of one layer's units, and which are replaced (Dohare et al., Nature 632, 2024).

    After every step, with ``h`` averaged over the batch: ``f <- r f + (1 - r) E h`` and ``u <- r u + (1 - r) y``, where
    ``y`` is ``E|h| mean|W_out|`` (``contribution``) or ``E|h - f^| mean|W_out| / mean|W_in|`` (``adaptable``); ``f^``
    and ``u^`` are divided by ``1 - r^age``. Of the units older than ``maturity`` steps a share ``rate`` a step is
    replaced, on average, those of the lowest ``u^``.

    Args:
        units: of the layer.
        rate: share a step.
        maturity: steps.
        decay: ``r``.
        utility: which ``y``.
    """

    def __init__(self, units: Units, rate: float, maturity: int, decay: float, utility: Utility) -> None:
        self.units = units
        self.rate, self.maturity, self.decay, self.utility = rate, maturity, decay, utility
        self.mean = torch.zeros(units.count)
        self.utilities = torch.zeros(units.count)
        self.ages = torch.zeros(units.count, dtype=torch.int64)
        self.owed = 0.0

    @property
    def corrected_mean(self) -> Tensor:
        """``f^``; 0 of a unit that is new."""
        return self._corrected(self.mean)

    def measure(self, values: Tensor, others: list[int], axis: int) -> Tensor:
        """Sums over a batch of ``h`` and of what the utility takes of it, ``(2, count)``."""
        values = values.float()
        if self.utility == "adaptable":
            shape = [1] * values.ndim
            shape[axis] = -1
            away = (values - self.corrected_mean.reshape(shape)).abs()
        else:
            away = values.abs()
        return torch.stack([values.sum(others), away.sum(others)])

    def observe(self, sums: Tensor, positions: int, tensors: dict[str, Tensor]) -> Tensor:
        """Take in a step; returns the positions of those to be replaced."""
        self.ages += 1
        mean, size = sums / positions
        worth = size * mean_size(tensors, self.units.outgoing, self.units.count)
        if self.utility == "adaptable":
            worth = worth / (mean_size(tensors, self.units.incoming, self.units.count) + _EPSILON)
        self.mean.lerp_(mean, 1 - self.decay)
        self.utilities.lerp_(worth.float(), 1 - self.decay)
        mature = (self.ages > self.maturity).nonzero().flatten()
        self.owed += self.rate * len(mature)
        number = min(int(self.owed), len(mature))
        self.owed -= number
        return mature[self._corrected(self.utilities)[mature].argsort(stable=True)[:number]]

    def reset(self, chosen: Tensor) -> None:
        """These units are new."""
        for of in (self.mean, self.utilities, self.ages):
            of[chosen] = 0

    def to(self, device: torch.device) -> None:
        """Go to where the units are."""
        self.mean, self.utilities, self.ages = (t.to(device) for t in (self.mean, self.utilities, self.ages))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number."""
        return {"mean": self.mean, "utilities": self.utilities, "ages": self.ages, "owed": self.owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.mean, self.utilities, self.ages = (state[name].clone() for name in ("mean", "utilities", "ages"))
        self.owed = state["owed"]

    def _corrected(self, running: Tensor) -> Tensor:
        return running / (1 - self.decay ** self.ages.clamp(min=1).double()).to(running)


def hand_over(module: nn.Module, units: Units, chosen: Tensor, means: Tensor) -> None:
    """Add to the next layer's bias what the chosen units gave it on average: ``b += W_out f^``.

    Exact for a unit that always gives its mean; of a convolution, up to what its padding leaves out.
    """
    tensors = dict(module.named_parameters())
    if units.next_bias is None or not tensors[units.next_bias].requires_grad:
        return
    with torch.no_grad():
        for part in units.outgoing:
            columns = part.of(tensors[part.tensor], units.count)[chosen]  # (chosen, width, out, kernel...)
            given = columns.sum(1).flatten(2).sum(2) if columns.ndim > 3 else columns.sum(1)
            tensors[units.next_bias].add_((means[chosen].to(given)[:, None] * given).sum(0))
