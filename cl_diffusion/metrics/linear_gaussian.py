"""A linear model of Gaussian data, whose Fishers are known: where a claim about rank one can be held to a formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cl_diffusion.fisher.criterion import OutputLoss, SquaredError


class LinearGaussian(nn.Module):
    """``y | x ~ N(f(x), sigma^2 I)`` with ``f(x) = A x + remainder * tanh(B x)`` and ``x ~ N(0, tau^2 I_d)``.

    ``A`` is the parameter, ``(d, d)``, ``B`` random and fixed, all in float64. The loss is the negative
    log-likelihood but for a constant, ``|y - f(x)|^2 / (2 sigma^2)``. Without a remainder

    - the true Fisher is ``tau^2 / sigma^2 I`` and ``KL(A || A + D) = tau^2 / (2 sigma^2) |D|_F^2``, so that it prefers
      no direction to another;
    - on targets ``y = gamma x`` with ``A = (gamma + a) I`` a sample's gradient is ``a x x^T / sigma^2``. The empirical
      second moment then has ``lambda_1 / trace = 1 / d`` along ``I / sqrt(d)``, ``lambda_2 / lambda_1 = 2 / (d + 2)``,
      and every gradient the cosine ``1 / sqrt(d)`` with their mean: 1 only for ``d = 1``.

    A denoiser near pure noise is of this kind: it is to return ``gamma x_t``, whatever the data.

    Args:
        dimension: ``d``.
        sigma: standard deviation of ``y``, > 0.
        tau: of ``x``, > 0.
        remainder: size of the part that is not linear.
        seed: of ``B``.

    Raises:
        ValueError: ``dimension``, ``sigma`` or ``tau`` is not positive.
    """

    mix: Tensor

    def __init__(
        self, dimension: int, sigma: float = 1.0, tau: float = 1.0, remainder: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        if dimension < 1 or not sigma > 0 or not tau > 0:
            raise ValueError(f"dimension={dimension}, sigma={sigma}, tau={tau}; expected all of them positive")
        self.sigma, self.tau, self.remainder = sigma, tau, remainder
        self.weight = nn.Parameter(torch.eye(dimension, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64) / math.sqrt(dimension)
        self.register_buffer("mix", mix)

    def forward(self, x: Tensor) -> Tensor:
        """``f(x)``, ``(B, d)``."""
        y: Tensor = x @ self.weight.T + self.remainder * torch.tanh(x @ self.mix.T)
        return y

    def inputs(self, samples: int, generator: torch.Generator) -> Tensor:
        """``x``, ``(n, d)``."""
        shape = samples, len(self.weight)
        return self.tau * torch.randn(shape, generator=generator, dtype=torch.float64)

    @property
    def loss(self) -> OutputLoss:
        """Of batches ``(x, y)``, one entry a sample."""
        return OutputLoss(
            SquaredError("half_sum"),
            output=lambda model, batch: model(batch[0]) / model.sigma,
            target=lambda model, batch: batch[1] / model.sigma,
        )

    def divergence(self, displacement: Tensor) -> float:
        """``E_x KL(p(y | x; A) || p(y | x; A + D))`` in nats, exactly."""
        return float(displacement.square().sum()) * self.tau**2 / (2 * self.sigma**2)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each sample's loss, ``(n, d^2)``: ``(f(x) - y) x^T / sigma^2``, by its formula."""
        with torch.no_grad():
            residual: Tensor = (self(x) - y) / self.sigma**2
            return (residual[:, :, None] * x[:, None, :]).flatten(1)
