"""What several processes do together: each its share of the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from cl_diffusion.progress import track


def share_of_work(trainer: Trainer) -> tuple[int, int]:
    """Which share is this process's, and how many there are.

    The whole of it where parameters are sharded, since each forward takes all processes.
    """
    sharded = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
    return (0, 1) if sharded else (trainer.global_rank, trainer.world_size)


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
    mine, shares = share_of_work(trainer)
    images = torch.zeros(sum(sizes), *shape, device=module.device)
    chunks = images.split(list(sizes))
    for number in track(trainer, range(mine, len(sizes), shares), description):
        chunks[number].copy_(draw(number))
    if shares == 1:
        return images
    summed: Tensor = trainer.strategy.reduce(images, reduce_op="sum")  # each has drawn its own, and zeros elsewhere
    return summed
