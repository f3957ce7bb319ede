"""What a batch of images has to be, before a step is taken on it."""

from __future__ import annotations

import torch
from torch import Tensor

FAR_OUT = 100.0
"""No image in [-1, 1] and no latent reaches it; images in 0 .. 255 do, but for dark ones."""


def require_images(images: object, labels: object) -> None:
    """Refuse what is no batch of images and labels, by type and shape alone: no value is read.

    Raises:
        TypeError: images or labels are no tensors.
        ValueError: images are not floating point ``(B, C, H, W)`` with B >= 1, or labels not integers ``(B,)``.
    """
    if not isinstance(images, Tensor) or not (labels is None or isinstance(labels, Tensor)):
        raise TypeError(
            f"a batch holds images={type(images).__name__}, labels={type(labels).__name__}; expected a tensor "
            "(B, C, H, W), and a tensor (B,) or none"
        )
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}: expected floating point, scaled to [-1, 1].")
    if images.ndim != 4 or not images.numel():
        raise ValueError(
            f"images have shape {tuple(images.shape)}: expected (B, C, H, W), at least one of at least one pixel."
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: expected integers of shape ({len(images)},), "
            "one an image."
        )


def require_values(images: Tensor, labels: Tensor | None = None, num_classes: int | None = None) -> None:
    """Refuse values that a step must not be taken on; it waits for the device that they are on.

    Args:
        images: in [-1, 1], or so: latents may be larger.
        labels: of them.
        num_classes: that the network embeds; None is not known.

    Raises:
        ValueError: an image is not finite or far out of [-1, 1], or a label is out of range.
    """
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"images: {len(bad)} of the {len(images)} in a batch hold values that are not finite, first number "
            f"{bad[0]}; expected values in [-1, 1]: look at the data set and its transform"
        )
    low, high = (float(end) for end in torch.aminmax(images))
    if max(-low, high) > FAR_OUT:
        raise ValueError(f"images range over [{low:g}, {high:g}]; expected values in [-1, 1]: scale them")
    if labels is not None and num_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0 to {num_classes - 1}, for the "
            f"network embeds {num_classes} classes: build it with more, or number the classes from 0"
        )
