"""How much of the image and how much noise is left at each timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_diffusion.arguments import is_whole


class Scales(NamedTuple):
    """``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, shaped to multiply the images that they were asked for."""

    signal: Tensor
    noise: Tensor


class NoiseSchedule(nn.Module):
    """A variance-preserving noising process over ``T`` discrete timesteps.

    ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps`` with ``eps ~ N(0, I)`` and ``t = 0 .. T-1``; ``abar`` falls
    strictly from near 1 to near 0, and the clean image is ``t = -1`` with ``abar = 1``.

    The tables are float64 buffers that follow the module's device but never its dtype (float32 where the device has no
    float64): they are no part of a state_dict, since the schedule is a hyper-parameter.

    Args:
        alpha_bar: ``abar_0 .. abar_{T-1}``, strictly decreasing within (0, 1).

    Raises:
        ValueError: ``alpha_bar`` is empty, not one-dimensional, leaves (0, 1) or does not decrease.

    Example:
        >>> schedule = NoiseSchedule([0.9, 0.64, 0.1])
        >>> schedule.num_steps, schedule.alpha_bar_at(-1)
        (3, 1.0)
        >>> schedule.add_noise(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([1]))
        tensor([[0.8000]])
    """

    alpha_bar: Tensor  # float64 (T,), always on the CPU: the exact values that the other tables are made of
    signal: Tensor  # sqrt(abar)
    noise: Tensor  # sqrt(1 - abar)
    log_snr: Tensor  # log(abar / (1 - abar)), natural logarithm

    def __init__(self, alpha_bar: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64, device="cpu").detach().clone()
        _check_alpha_bar(self.alpha_bar)
        for name, table in self._tables().items():
            self.register_buffer(name, table, persistent=False)

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """``beta_t`` linear in ``t``, ``abar_t = prod_{i<=t} (1 - beta_i)`` (Ho et al. 2020, section 4).

        Args:
            steps: number of timesteps ``T``.
            beta_start: noise variance of the first step, in (0, 1).
            beta_end: noise variance of the last step, in (0, 1).

        Raises:
            ValueError: an argument is out of its range.
        """
        _check_steps(steps)
        _check_beta("beta_start", beta_start)
        _check_beta("beta_end", beta_end)
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu")
        return cls(torch.cumprod(1 - beta, 0))

    @classmethod
    def cosine(cls, steps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """``abar_t = f(t+1) / f(0)``, ``f(t) = cos^2(pi/2 (t/T + .008) / 1.008)`` (Nichol & Dhariwal 2021, eq. 17).

        Args:
            steps: number of timesteps ``T``.
            max_beta: no step adds more noise variance than this, in (0, 1).

        Raises:
            ValueError: an argument is out of its range.
        """
        _check_steps(steps)
        _check_beta("max_beta", max_beta)
        f = [math.cos(math.pi / 2 * (t / steps + 0.008) / 1.008) ** 2 for t in range(steps + 1)]
        beta = torch.tensor(
            [min(1 - f[t + 1] / f[t], max_beta) for t in range(steps)], dtype=torch.float64, device="cpu"
        )
        return cls(torch.cumprod(1 - beta, 0))

    @property
    def num_steps(self) -> int:
        """``T``, the number of timesteps."""
        return len(self.alpha_bar)

    def alpha_bar_at(self, t: int) -> float:
        """``abar_t`` to float64 accuracy; 1 for the clean image, ``t = -1``.

        Raises:
            ValueError: ``t`` is not in ``-1 .. T-1``.
        """
        if not -1 <= t < self.num_steps:
            raise ValueError(f"t={t}: expected a timestep in 0..{self.num_steps - 1}, or -1 for the clean image.")
        return 1.0 if t == -1 else float(self.alpha_bar[t])

    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """The two scales of each sample, in the dtype of ``like`` and broadcastable to it.

        Gathered in float64 and then rounded once. ``t``: int64 ``(B,)`` in ``0 .. T-1`` (not checked: a look at the
        values would stall a GPU and fail under ``vmap``); ``like``: ``(B, ...)``.
        """
        shape = t.shape + (1,) * (like.ndim - t.ndim)
        return Scales(*(table[t].to(like.dtype).reshape(shape) for table in (self.signal, self.noise)))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`` of shape ``(B, ...)`` (Ho et al. 2020, eq. 4)."""
        scales = self.scales(t, like=x0)
        return scales.signal * x0 + scales.noise * noise

    def extra_repr(self) -> str:
        """The number of steps and the range of log-snr."""
        first, last = self._tables()["log_snr"][[0, -1]].tolist()
        return f"num_steps={self.num_steps}, log_snr={first:.4f}..{last:.4f}"

    def _tables(self) -> dict[str, Tensor]:
        signal_power, noise_power = self.alpha_bar, 1 - self.alpha_bar
        return {
            "signal": signal_power.sqrt(),
            "noise": noise_power.sqrt(),
            "log_snr": signal_power.log() - noise_power.log(),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseSchedule:
        """Follow the device alone: ``.to(bfloat16)`` of the model around it would make it another schedule."""
        device = fn(self.signal.float()).device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, table in self._tables().items():
            setattr(self, name, table.to(device, dtype))
        return self


def _check_alpha_bar(alpha_bar: Tensor) -> None:
    if alpha_bar.ndim != 1 or len(alpha_bar) == 0:
        raise ValueError(
            f"alpha_bar has shape {tuple(alpha_bar.shape)}: expected (T,) with T >= 1, one value a timestep."
        )
    previous = 1.0
    for index, value in enumerate(alpha_bar.tolist()):
        if not 0 < value < previous:
            expected = "a value in (0, 1)" if index == 0 or not 0 < value < 1 else f"less than {previous!r} before it"
            raise ValueError(
                f"alpha_bar[{index}]={value!r}: expected {expected}; alpha_bar must decrease strictly within (0, 1). "
                "Give the cumulative product of 1 - beta (not beta itself), and fewer or smaller steps if it reaches 0."
            )
        previous = value


def _check_steps(steps: int) -> None:
    if not is_whole(steps, 1):
        raise ValueError(f"steps={steps}: expected a whole number of timesteps, at least 1.")


def _check_beta(name: str, beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"{name}={beta}: expected a noise variance in (0, 1), such as 0.02.")
