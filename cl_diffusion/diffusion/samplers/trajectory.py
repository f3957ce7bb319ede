"""Which timesteps a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from cl_diffusion.arguments import is_whole

Steps = int | list[int] | None
"""How many timesteps, or which; None: all of the schedule."""

Spacing = Literal["even", "quadratic"]


def trajectory(num_train_steps: int, steps: Steps, spacing: Spacing = "even") -> list[int]:
    """The timesteps that are visited, strictly descending; the clean image, ``t = -1``, follows the last.

    A number of them runs from ``T-1`` to 0, both included (1 step: ``[T-1]``): ``"even"``, as diffusers'
    ``"linspace"``, or ``"quadratic"``, ``t_i ~ i^2`` with more of them at little noise (Song et al. 2021, appendix
    D.2). A list is taken as it is, in descending order.

    Raises:
        ValueError: fewer than 1 or more than ``num_train_steps``, a timestep repeated or out of range, or an unknown
            spacing.

    Example:
        >>> trajectory(1000, 5)
        [999, 749, 500, 250, 0]
        >>> trajectory(1000, [0, 500, 900])
        [900, 500, 0]
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing={spacing!r}: expected one of {', '.join(map(repr, get_args(Spacing)))}.")
    if isinstance(steps, list):
        return _given(num_train_steps, steps)
    count = num_train_steps if steps is None else steps
    if not is_whole(count, 1) or count > num_train_steps:
        raise ValueError(f"steps={steps}: expected 1..{num_train_steps}, at most the timesteps of the noise schedule.")
    if count == 1:
        return [num_train_steps - 1]
    power = 1 if spacing == "even" else 2
    last = num_train_steps - 1
    ascending = [
        round((i / (count - 1)) ** power * last) if power > 1 else round(i * last / (count - 1)) for i in range(count)
    ]
    for i in range(1, count):
        ascending[i] = max(ascending[i], ascending[i - 1] + 1)  # squares crowd at the low end
    return ascending[::-1]


def _given(num_train_steps: int, steps: Sequence[int]) -> list[int]:
    descending = sorted(steps, reverse=True)
    whole = all(is_whole(t, 0) for t in steps)
    if not steps or not whole or len(set(steps)) < len(steps) or descending[0] >= num_train_steps:
        raise ValueError(
            f"steps={list(steps)}: expected at least one timestep, each once, from 0 to {num_train_steps - 1}."
        )
    return descending
