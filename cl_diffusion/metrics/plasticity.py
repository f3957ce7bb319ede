"""How much of a layer is in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """``exp H(p)`` with ``p_i = sigma_i / sum sigma`` (Roy & Vetterli 2007), of features ``(samples, units)``.

    Between 1 and the smaller of both sides; NaN of features that are none, all zero, or not all finite.
    """
    if not features.numel() or not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    total = float(values.sum())
    if total == 0:
        return math.nan
    shares = values[values > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


def stable_rank(features: Tensor) -> float:
    """``|A|_F^2 / |A|_2^2`` of features ``(samples, units)``; NaN of none, or all zero, or not all finite."""
    if not features.numel() or not features.isfinite().all():
        return math.nan
    squares = torch.linalg.svdvals(features.double()).square()
    return float(squares.sum() / squares.max()) if float(squares.max()) > 0 else math.nan
