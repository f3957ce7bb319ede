"""When a unit has been silent for longer than its own firing explains (Farias & Jozefiak 2024, 2410.20098)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_FLUSH = 512


class InterFiringTimes:
    """Each unit's age, the histogram of the ages at which it has fired, and the threshold that follows from it.

    The age ``a_i`` counts examples since unit i has fired last. It is to be reset once ``a_i >= tau_i``, where
    ``P(A_i >= tau_i) <= eta`` for ``A_i`` the unit's own inter-firing time: were its firing Bernoulli(p), ``tau`` would
    be about ``ln eta / ln(1 - p)``. As released by the authors: a unit fires if it is positive for any example of a
    batch; a reset's age goes into the histogram too, censored as it is; age 0 does not (the geometric law is
    memoryless, so it may be left out); ``update`` makes ``tau_i`` the smallest age by which ``1 - eta`` of its
    histogram lies if that is less than ``tau_i``, else doubles it, which undoes the censoring: the rule oscillates by
    design. A unit without a histogram keeps its threshold. None is shorter than a batch, nor longer than ``max_age``.

    The histogram holds the ages that there were and no others, so its size does not depend on ``max_age``.

    Args:
        count: units, of all layers together.
        threshold: ``eta``, in (0, 1).
        initial_age: every ``tau_i`` at first, in examples.
        max_age: no ``tau_i`` is longer; older ages count as this.
    """

    def __init__(self, count: int, threshold: float, initial_age: int, max_age: int = 10**7) -> None:
        self.threshold = threshold
        self.max_age = max_age
        self.limits = torch.full((count,), initial_age)
        self._clock: Tensor | int = 0  # examples so far; of each unit, where not all of them see the same
        self._last = torch.zeros(count, dtype=torch.int64)  # when it fired last, or was reset, by that clock
        self._nothing_within = 0  # so many examples no unit can be due
        self._keys = torch.zeros(0, dtype=torch.int64)  # unit * (max_age + 1) + age
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._forget_events()

    @property
    def ages(self) -> Tensor:
        """Of each unit, int64: examples since it fired last."""
        return self._clock - self._last

    def observe(self, fired: Tensor, examples: Tensor | int) -> Tensor | None:
        """Take in whether each unit has fired in a step of so many examples.

        Returns:
            A mask of those that are to be reset; None where none is.
        """
        self._take_place(fired, examples)
        self._nothing_within -= examples if isinstance(examples, int) else int(examples.max())
        if self._nothing_within > 0:
            return None
        left = self._last + self.limits - self._clock
        self._nothing_within = int(left.min())
        return None if self._nothing_within > 0 else left <= 0

    def reset(self, which: Tensor) -> None:
        """These units, a mask, are new."""
        self._take_place(which, 0)

    def update(self, examples: int) -> None:
        """New thresholds, of no fewer examples than a batch has."""
        self._flush()
        if len(self._keys):
            units, ages = self._keys // (self.max_age + 1), self._keys % (self.max_age + 1)
            counts = self._counts.double()
            totals = torch.zeros(len(self.ages), dtype=torch.float64).index_add_(0, units, counts)
            before = torch.cat([totals.new_zeros(1), totals.cumsum(0)[:-1]])
            share = (counts.cumsum(0) - before[units]) / totals[units]
            enough = share >= 1 - self.threshold - 1e-12
            limits = self.limits.cpu()
            reached = (2 * limits).scatter_reduce_(0, units[enough], ages[enough], "amin")
            new = torch.where(reached < limits, reached, 2 * limits)
            new = torch.where(totals > 0, new, limits).clamp(examples, max(self.max_age, examples))
            self.limits = new.to(self.limits.device)
        self._nothing_within = 0

    def to(self, device: torch.device) -> None:
        """Go to where the units are."""
        self._last, self.limits = self._last.to(device), self.limits.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Tensors alone."""
        self._flush()
        return {"ages": self.ages, "limits": self.limits, "keys": self._keys, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.limits, self._keys, self._counts = (state[name].clone() for name in ("limits", "keys", "counts"))
        self._clock, self._last, self._nothing_within = 0, -state["ages"], 0
        self._forget_events()

    def _take_place(self, who: Tensor, examples: Tensor | int) -> None:
        """These fire, or are reset, when so many examples have passed."""
        self._events.append((who, examples))
        self._clock = self._clock + examples
        if isinstance(self._clock, int):
            self._last.masked_fill_(who, self._clock)
        else:
            self._last = torch.where(who, self._clock, self._last)
        if len(self._events) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """The ages at all events into the histogram; 0 stands for none."""
        if not self._events:
            return
        who = torch.stack([who for who, _ in self._events]).cpu()
        if isinstance(self._clock, int):
            passed = torch.tensor([[examples] for _, examples in self._events])
        else:
            passed = torch.stack([torch.as_tensor(examples).cpu().expand_as(who[0]) for _, examples in self._events])
        clocks = self._flushed_clock + passed.cumsum(0)
        last = torch.cat([self._flushed_last[None], clocks.where(who, -(2**62))]).cummax(0).values[:-1]
        ages = (clocks - passed - last).where(who, 0).clamp(max=self.max_age)
        units = torch.arange(ages.shape[1]).expand_as(ages)
        keys = torch.cat([self._keys, (units * (self.max_age + 1) + ages)[ages > 0]])
        counts = torch.cat([self._counts, torch.ones(len(keys) - len(self._keys), dtype=torch.int64)])
        self._keys, where = keys.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, where, counts)
        self._forget_events()

    def _forget_events(self) -> None:
        """Who fired or was reset, after how many examples: from here on what is not in the histogram yet."""
        self._events: list[tuple[Tensor, Tensor | int]] = []
        self._flushed_clock, self._flushed_last = torch.as_tensor(self._clock).cpu(), self._last.cpu().clone()


class FiringRates:
    """Each unit's firing rate, counted over positions: for convolutions and tokens, where "any fired" is too coarse.

    One image has H*W firings of a channel. The rate is ``(1 + fired + resets) / (1 + positions)``; a silent batch of N
    positions adds N to the age, any other makes it ``N / fired``; ``tau = ln(1/eta) / rate``. A unit is reset only if
    it is silent in the batch at hand. One that has never fired has no rate to be measured by, and is never due for
    ``eta < 1/e``.

    Args:
        count: units, of all layers together.
        threshold: ``eta``, in (0, 1).
    """

    def __init__(self, count: int, threshold: float) -> None:
        self.threshold = threshold
        self.ages = torch.zeros(count, dtype=torch.float64)
        self.fired = torch.zeros(count, dtype=torch.float64)
        self.positions = torch.zeros(count, dtype=torch.float64)

    @property
    def limits(self) -> Tensor:
        """Each ``tau_i``, in positions."""
        return -math.log(self.threshold) * (1 + self.positions) / (1 + self.fired)

    def observe(self, fired: Tensor, positions: Tensor | int) -> Tensor | None:
        """Take in how often each unit has fired at so many positions; returns a mask of those due, None of none."""
        fired, positions = fired.to(self.ages), torch.as_tensor(positions, device=self.ages.device)
        silent = fired == 0
        self.ages = torch.where(silent, self.ages + positions, positions / fired.clamp(min=1))
        self.fired += fired
        self.positions += positions
        due = silent & (self.ages >= self.limits)
        return due if bool(due.any()) else None

    def reset(self, which: Tensor) -> None:
        """These units, a mask, are new."""
        self.fired += which.to(self.fired)
        self.ages = self.ages.masked_fill(which, 0)

    def update(self, examples: int) -> None:
        """Nothing: thresholds follow the rate at once."""

    def to(self, device: torch.device) -> None:
        """Go to where the units are."""
        self.ages, self.fired, self.positions = (t.to(device) for t in (self.ages, self.fired, self.positions))

    def state_dict(self) -> dict[str, Any]:
        """Tensors alone."""
        return {"ages": self.ages, "fired": self.fired, "positions": self.positions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.ages, self.fired, self.positions = (state[n].clone() for n in ("ages", "fired", "positions"))
