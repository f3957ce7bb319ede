"""Images with a label each, in memory or read item by item."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_diffusion.data.images import ImageFormat, Shape, unit_image

_CHUNK = 4096


class LabelledImages(ABC):
    """Images of one shape and their labels.

    Attributes:
        labels: int64 ``(N,)``, the data set's own class ids.
        num_classes: size of the label space.
    """

    labels: Tensor
    num_classes: int

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """``(C, H, W)`` of every image."""

    @abstractmethod
    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at these indices: float32 ``(B, C, H, W)`` in [-1, 1]."""

    def on(self, device: torch.device) -> LabelledImages:
        """The same images, bit for bit, held on this device; as they are where they are not held in memory."""
        return self

    def __len__(self) -> int:
        return len(self.labels)


class StoredImages(LabelledImages):
    """A data set held in memory as one uint8 tensor, formatted once.

    Args:
        pixels: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        num_classes: size of the label space.
        image_format: what the images are turned into, rounded to uint8.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, num_classes: int, image_format: ImageFormat) -> None:
        self.labels = labels.long()
        self.num_classes = num_classes
        shape = image_format.shape((pixels.shape[1], pixels.shape[2], pixels.shape[3]))
        if shape != tuple(pixels.shape[1:]):
            parts = [image_format(part / 255).mul(255).round().byte() for part in torch.split(pixels, _CHUNK)]
            pixels = torch.cat(parts)
        self._pixels = pixels
        self._half = torch.tensor(127.5)  # a tensor: a GPU multiplies by the reciprocal of a number, which is another
        self._elsewhere: StoredImages | None = None

    @property
    def shape(self) -> Shape:  # noqa: D102
        channels, height, width = self._pixels.shape[1:]
        return channels, height, width

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:  # noqa: D102
        return self._pixels[on_device(indices, self._pixels.device)].float() / self._half - 1

    def on(self, device: torch.device) -> StoredImages:  # noqa: D102
        if device == self._pixels.device:
            return self
        if self._elsewhere is None or self._elsewhere._pixels.device != device:
            self._elsewhere = copy.copy(self)
            self._elsewhere._pixels, self._elsewhere._half = self._pixels.to(device), self._half.to(device)
        return self._elsewhere


class ForeignImages(LabelledImages):
    """A map-style data set of ``(image, label)``, read and formatted item by item.

    Labels are read from its ``targets`` or ``labels`` where it has them untransformed, as torchvision's data sets do,
    and from the items otherwise (one pass over all of them).

    Args:
        dataset: its images as ``unit_image`` takes them.
        image_format: what the images are turned into.
    """

    def __init__(self, dataset: Dataset[Any], image_format: ImageFormat) -> None:
        self._dataset: Any = dataset
        self._format = image_format
        self.labels = _labels(dataset)
        self.num_classes = max(int(self.labels.max()) + 1, len(getattr(dataset, "classes", ())))

    @property
    def shape(self) -> Shape:  # noqa: D102
        channels, height, width = self._image(0).shape
        return channels, height, width

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:  # noqa: D102
        indices = indices.tolist() if isinstance(indices, Tensor) else indices
        images = [self._image(index) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"image_size={self._format.image_size}, channels={self._format.channels}: item {index} has shape "
                    f"{tuple(image.shape)}, item {indices[0]} {tuple(images[0].shape)}. Set both, so that they agree."
                )
        return torch.stack(images) * 2 - 1

    def _image(self, index: int) -> Tensor:
        try:
            image = unit_image(self._dataset[index][0])
        except ValueError as error:
            raise ValueError(f"item {index} of {type(self._dataset).__name__}: {error}") from error
        formatted: Tensor = self._format(image[None])[0]
        return formatted


def on_device(indices: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Indices as a tensor where it is needed, without waiting for what the device is busy with."""
    return torch.as_tensor(indices).to(device, non_blocking=True)


def _labels(dataset: Any) -> Tensor:
    if not len(dataset):
        raise ValueError(f"dataset={type(dataset).__name__} is empty: expected at least one (image, label).")
    found = None
    if getattr(dataset, "target_transform", None) is None:
        found = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    labels = torch.as_tensor([_label(dataset, i) for i in range(len(dataset))] if found is None else found)
    if labels.shape != (len(dataset),) or labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"dataset={type(dataset).__name__} has labels of shape {tuple(labels.shape)} and type {labels.dtype}: "
            f"expected {len(dataset)} class ids, integers from 0."
        )
    return labels.long()


def _label(dataset: Any, index: int) -> int:
    given = dataset[index][1]
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # no number, or several
        if int(given) == given:
            return int(given)
    raise ValueError(
        f"dataset={type(dataset).__name__}: the label of item {index} is {given!r}; expected an integer from 0."
    )
