from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset


class Numbered(Dataset):
    """Item ``i`` is an image of value ``i / 255`` and has label ``i % num_classes``."""

    def __init__(self, size: int = 60, num_classes: int = 6, shape: tuple[int, ...] = (1, 2, 2)) -> None:
        self.size, self.num_classes, self.shape = size, num_classes, shape

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full(self.shape, index / 255), index % self.num_classes


def numbers(images: Tensor) -> list[int]:
    """Which items of ``Numbered`` the served images are."""
    return images[:, 0, 0, 0].add(1).mul(127.5).round().int().tolist()


@pytest.fixture
def numbered() -> type[Numbered]:
    return Numbered


@pytest.fixture
def read_numbers() -> Any:
    return numbers


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """MNIST in its own format: 3 training and 2 test images a class, image ``i`` of value ``8 * i``."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8) * 8, 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())
    return tmp_path


def write_image_folder(root: Path, classes: list[str], count: int = 5, size: tuple[int, int] = (6, 4)) -> Path:
    for value, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (255, 51 * value, 0)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def image_folder() -> Any:
    return write_image_folder
