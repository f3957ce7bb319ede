from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cl_diffusion.metrics import FrechetDistance, inception_distance
from cl_diffusion.metrics.frechet import INCEPTION_WEIGHTS


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


def test_inception_is_used_where_it_is_installed_and_nothing_is_downloaded_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("cl_diffusion.metrics.frechet.find_spec", lambda name: object())
    assert inception_distance() is None

    class Pixels(nn.Module):
        """In Inception's place: takes bytes of three channels, gives 2048 features."""

        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert Path(feature_extractor_weights_path).read_text() == "weights"

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.dtype == torch.uint8
            assert images.shape[1] == 3
            return torch.nn.functional.pad(images.double().flatten(1), (0, 2048 - images[0].numel()))

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / INCEPTION_WEIGHTS).write_text("weights")
    monkeypatch.setattr("cl_diffusion.metrics.frechet.NoTrainInceptionV3", Pixels)
    distance = inception_distance()
    assert distance is not None
    distance.add_real(torch.zeros(3, 1, 2, 2))
    assert distance(torch.zeros(4, 1, 2, 2)) == pytest.approx(0)
    assert distance(torch.ones(4, 1, 2, 2)) == pytest.approx(12 * (255 - 128) ** 2)
