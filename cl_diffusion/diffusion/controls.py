"""Batches without what a direction is supposed to know: no images, or other labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_diffusion.keys import derive_keys, keyed_integers, keyed_normal


def pure_noise(batch: Any, keys: Tensor) -> Any:
    """The batch with standard normal noise in place of its images: the input is ``N(0, I)`` at every timestep.

    Args:
        batch: ``(images, labels)`` or images.
        keys: one a sample, int64 ``(B,)``; the noise is independent of what the loss draws by the same keys.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    noise = keyed_normal(derive_keys(0, keys, purpose="pure noise"), tuple(images.shape[1:])).to(images)
    return (noise, *batch[1:]) if isinstance(batch, (tuple, list)) else noise


def relabelled(batch: Any, keys: Tensor, labels: Tensor) -> Any:
    """The batch's images, each with one of ``labels`` at random.

    Args:
        batch: ``(images, labels, ...)``.
        keys: one a sample, int64 ``(B,)``.
        labels: to choose from, int64 ``(K,)``; one that is there twice is chosen twice as often.
    """
    images, old, *rest = batch
    chosen = keyed_integers(derive_keys(0, keys, purpose="labels"), len(labels))
    return images, labels[chosen.to(labels.device)].to(old), *rest


def images_of(batch: Any) -> Tensor | None:
    """The images of ``(images, ...)`` or of images alone; None of a batch of another form."""
    images = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    return images if isinstance(images, Tensor) and images.is_floating_point() and images.ndim > 1 else None


def labels_of(batch: Any) -> Tensor | None:
    """The labels of ``(images, labels, ...)``; None of images alone."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        return None
    labels: Tensor = batch[1]
    return labels if not torch.is_floating_point(labels) else None
