"""Which timesteps a sampler visits."""

from __future__ import annotations


def trajectory(num_train_steps: int, steps: int) -> list[int]:
    """``steps`` timesteps, strictly descending and evenly spaced from ``T-1`` to 0, both included (1 step: ``[T-1]``).

    After the last of them comes the clean image, ``t = -1``. The spacing is diffusers' ``"linspace"``.

    Raises:
        ValueError: ``steps`` is less than 1 or more than ``num_train_steps``.
    """
    if not 1 <= steps <= num_train_steps:
        raise ValueError(f"steps={steps}: expected 1..{num_train_steps}, at most the timesteps of the noise schedule.")
    if steps == 1:
        return [num_train_steps - 1]
    return [round(i * (num_train_steps - 1) / (steps - 1)) for i in reversed(range(steps))]
