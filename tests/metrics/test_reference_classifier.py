from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cl_diffusion.metrics.reference_classifier import trained_reference


def quadrants(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with one bright quadrant, which is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    images = -1 + 0.3 * torch.rand(n, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.5
    return images, labels


def test_it_learns_what_can_be_learned_and_is_found_again(tmp_path: Path) -> None:
    rng = torch.get_rng_state()
    first = trained_reference(quadrants(200, 0), quadrants(100, 1), steps=60, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), rng)
    again = trained_reference(quadrants(200, 0), quadrants(100, 1), steps=60, cache=tmp_path)
    assert first.held_out_accuracy > 0.95
    assert (first.origin, again.origin) == ("trained now", "from the cache")
    images = quadrants(10, 2)[0]
    assert torch.equal(first.classifier(images), again.classifier(images))
    assert not first.classifier.training


def test_other_data_is_another_classifier(tmp_path: Path) -> None:
    trained_reference(quadrants(50, 0), quadrants(20, 1), steps=2, cache=tmp_path)
    other = trained_reference(quadrants(50, 3), quadrants(20, 1), steps=2, cache=tmp_path)
    assert other.origin == "trained now"
    assert len(list(tmp_path.iterdir())) == 2
