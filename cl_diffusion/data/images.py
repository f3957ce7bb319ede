"""Images of every kind as float tensors of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_diffusion.arguments import is_whole

Shape = tuple[int, int, int]
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601 grey."""


@dataclass(frozen=True)
class ImageFormat:
    """What an image is turned into: its size, how it gets there, and its channels.

    Args:
        image_size: side of the square image in pixels; ``None`` keeps the native size.
        resize: ``"resize"`` scales the shorter side (bilinear, antialiased) and crops the centre; ``"pad"`` centres the
            image on black, scaled only where it is too large.
        channels: 1 (grey) or 3 (RGB); ``None`` keeps them.
    """

    image_size: int | None = None
    resize: Literal["resize", "pad"] = "resize"
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and not is_whole(self.image_size, 1):
            raise ValueError(f"image_size={self.image_size}: expected at least 1, or None for the native size.")
        if self.resize not in ("resize", "pad"):
            raise ValueError(f"resize={self.resize!r}: expected 'resize' or 'pad'.")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels={self.channels}: expected 1, 3, or None for the data set's own.")

    def shape(self, native: Shape) -> Shape:
        """The shape ``(C, H, W)`` that an image of this native shape gets."""
        channels, height, width = native
        size = self.image_size
        return (self.channels or channels, size or height, size or width)

    def __call__(self, images: Tensor) -> Tensor:
        """Formats ``(N, C, H, W)`` floats, values in [0, 1] before and after."""
        images = _convert(images, self.channels)
        if self.image_size is None or images.shape[-2:] == (self.image_size, self.image_size):
            return images
        return (_pad if self.resize == "pad" else _crop)(images, self.image_size)


def unit_image(image: Any) -> Tensor:
    """One image as a float32 tensor ``(C, H, W)`` with values in [0, 1].

    Args:
        image: a PIL image; a tensor ``(C, H, W)`` or ``(H, W)``; or an array ``(H, W, C)`` or ``(H, W)``. Integers are
            taken as uint8, floats as [0, 1].

    Raises:
        ValueError: if it is of another type, shape or range.
    """
    if isinstance(image, Tensor):
        tensor = image
    elif isinstance(image, np.ndarray):
        tensor = _channels_first(image)
    elif hasattr(image, "convert") and hasattr(image, "mode"):
        mode = image.mode if image.mode in ("L", "RGB") else "L" if image.mode == "1" else "RGB"
        tensor = _channels_first(np.array(image.convert(mode)))
    else:
        raise ValueError(f"image is a {type(image).__name__}: expected a PIL image, a tensor or a numpy array.")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3:
        raise ValueError(f"image has shape {tuple(tensor.shape)}: expected (C, H, W), or (H, W) for one channel.")
    if not tensor.numel() or tensor.is_complex():
        raise ValueError(
            f"image has {tensor.dtype} values of shape {tuple(tensor.shape)}: expected real ones, at least one pixel."
        )
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point() or not (tensor.min() >= 0 and tensor.max() <= 1):  # nor is NaN in the range
        raise ValueError(
            f"image has {tensor.dtype} values in [{tensor.min():.4g}, {tensor.max():.4g}]: expected uint8, or floats "
            "in [0, 1]. Drop a normalisation from the data set's transform."
        )
    return tensor.float()


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor


def _convert(images: Tensor, channels: int | None) -> Tensor:
    own = images.shape[1]
    if channels is None or channels == own:
        return images
    if {own, channels} != {1, 3}:
        raise ValueError(f"channels={channels}: an image of {own} channels has no such form. Set channels to None.")
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))[:, None].clamp(0, 1)


def _crop(images: Tensor, size: int) -> Tensor:
    images = _scale(images, size / min(images.shape[-2:]))
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def _pad(images: Tensor, size: int) -> Tensor:
    images = _scale(images, min(1.0, size / max(images.shape[-2:])))
    height, width = images.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def _scale(images: Tensor, factor: float) -> Tensor:
    sides = [max(1, round(side * factor)) for side in images.shape[-2:]]
    if sides == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=sides, mode="bilinear", antialias=True)
