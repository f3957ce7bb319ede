from __future__ import annotations

import pytest
import torch
from torch import nn

from cl_diffusion.metrics import FrechetDistance


def gaussian(n: int, mean: torch.Tensor, scale: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def test_it_is_the_distance_of_two_gaussians() -> None:
    """For diagonal covariances: |m - m'|^2 + sum (s - s')^2."""
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    shift, scale = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, 0.5])
    distance = FrechetDistance(nn.Identity(), 3)
    distance.add_real(gaussian(20_000, zero, one, 0))
    want = float(shift.square().sum() + (scale - 1).square().sum())
    assert distance(gaussian(20_000, shift, scale, 1)) == pytest.approx(want, rel=0.03)
    assert distance(gaussian(20_000, zero, one, 2)) == pytest.approx(0, abs=0.01)


def test_real_statistics_are_kept_and_generated_ones_are_not() -> None:
    distance = FrechetDistance(nn.Identity(), 2)
    distance.add_real(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    first = distance(torch.randn(50, 2, generator=torch.Generator().manual_seed(1)))
    distance(10 + torch.randn(50, 2))
    assert distance(torch.randn(50, 2, generator=torch.Generator().manual_seed(1))) == first


def test_too_few_images_are_refused() -> None:
    distance = FrechetDistance(nn.Identity(), 2)
    with pytest.raises(ValueError, match="0 real and 5 generated"):
        distance(torch.randn(5, 2))
