"""Images that several processes draw together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from cl_diffusion.progress import track


def drawn_by_all(
    trainer: Trainer, draw: Callable[[int], Tensor], sizes: Sequence[int], shape: Sequence[int], description: str
) -> Tensor:
    """All images ``(sum(sizes), *shape)`` on every process, each of which draws its share of the chunks.

    Every process has to call it. Where a chunk is a function of its number alone, the images are the same on any number
    of processes.

    Args:
        trainer: whose processes.
        draw: from a chunk's number to its images ``(sizes[number], *shape)``.
        sizes: of the chunks.
        shape: of an image.
        description: for the progress bar.
    """
    module = trainer.lightning_module
    images = torch.zeros(sum(sizes), *shape, device=module.device)
    chunks = images.split(list(sizes))
    for number in track(trainer, range(trainer.global_rank, len(sizes), trainer.world_size), description):
        chunks[number].copy_(draw(number))
    summed: Tensor = trainer.strategy.reduce(images, reduce_op="sum")  # each has drawn its own, and zeros elsewhere
    return summed
