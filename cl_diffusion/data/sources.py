"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from cl_diffusion.data.images import ImageFormat, Shape
from cl_diffusion.data.labelled import ForeignImages, LabelledImages, StoredImages

SourceName = Literal["digits", "mnist", "fashion_mnist", "cifar10", "image_folder"]


class Source(NamedTuple):
    """How to read a data set, and what is known of it beforehand.

    ``load(root, download, image_format)`` returns the training images and, where the data set has them, the held-out
    ones. ``shape`` and ``num_classes`` are ``None`` where only the data can tell.
    """

    load: Callable[[str, bool, ImageFormat], list[LabelledImages]]
    shape: Shape | None = None
    num_classes: int | None = None


def source_of(dataset: SourceName | Dataset[Any]) -> Source:
    """The source of a name, or of any map-style data set of ``(image, label)``.

    Raises:
        ValueError: if the name is unknown, or the data set is not map-style.
    """
    if isinstance(dataset, str):
        if dataset not in SOURCES:
            raise ValueError(
                f"dataset={dataset!r}: expected one of {sorted(SOURCES)}, or a data set (class_path in a config)."
            )
        return SOURCES[dataset]
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"dataset={type(dataset).__name__}: expected a map-style data set of (image, label), with __len__ and "
            "__getitem__. Collect an iterable one into a list first."
        )
    return Source(partial(_foreign, dataset))


def _foreign(dataset: Dataset[Any], root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
    return [ForeignImages(dataset, image_format)]


def _digits(root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)[:, None].mul(255 / 16).round().byte()
    return [StoredImages(pixels, torch.from_numpy(digits.target), 10, image_format)]


def _torchvision(name: str, folder: str, root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    try:
        splits = [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        if download:
            raise
        raise ValueError(
            f"root={root!r}: no complete {name} in {Path(root).expanduser() / folder}, where torchvision keeps it. "
            "Point root at the folder that holds it in this layout, or set download: true."
        ) from error
    return [
        StoredImages(_channels_first(split.data), torch.as_tensor(split.targets), 10, image_format) for split in splits
    ]


def _channels_first(pixels: Any) -> Tensor:
    """``(N, H, W)`` or ``(N, H, W, C)`` as ``(N, C, H, W)``."""
    tensor = torch.as_tensor(pixels)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _image_folder(root: str, download: bool, image_format: ImageFormat) -> list[LabelledImages]:
    from torchvision.datasets import ImageFolder

    top = Path(root).expanduser()
    held_out = next((top / name for name in ("test", "val") if (top / name).is_dir()), None)
    folders = [top / "train", held_out] if held_out is not None and (top / "train").is_dir() else [top]
    try:
        splits = [ImageFolder(str(folder)) for folder in folders]
    except FileNotFoundError as error:
        raise ValueError(
            f"root={root!r}: expected one folder of images a class, as {top / 'CLASS' / 'IMAGE.png'}, or such folders "
            f"in both {top / 'train'} and {top / 'test'} (or val). Point root there; nothing is downloaded."
        ) from error
    if splits[0].classes != splits[-1].classes:
        differing = sorted(set(splits[0].classes).symmetric_difference(splits[-1].classes))
        raise ValueError(
            f"root={root!r}: the classes {differing} are not in both {folders[0]} and {folders[-1]}, so that a label "
            "would mean two things. Make the class folders of the two agree."
        )
    return [ForeignImages(split, image_format) for split in splits]


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, (1, 8, 8), 10),
    "mnist": Source(partial(_torchvision, "MNIST", "MNIST/raw"), (1, 28, 28), 10),
    "fashion_mnist": Source(partial(_torchvision, "FashionMNIST", "FashionMNIST/raw"), (1, 28, 28), 10),
    "cifar10": Source(partial(_torchvision, "CIFAR10", "cifar-10-batches-py"), (3, 32, 32), 10),
    "image_folder": Source(_image_folder),
}
"""By name; each but ``digits`` and a plain ``image_folder`` has held-out images of its own."""
