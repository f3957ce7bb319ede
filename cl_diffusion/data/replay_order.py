"""Which images are replayed in an epoch, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_diffusion.data.images import Shape
from cl_diffusion.data.labelled import LabelledImages, on_device
from cl_diffusion.data.permutation import Purpose, keyed_generator
from cl_diffusion.data.replay_source import Pool
from cl_diffusion.data.selection import Samples


class JoinedImages(LabelledImages):
    """The images of several pools behind one another.

    Args:
        parts: at least one, of one shape.
    """

    def __init__(self, parts: Sequence[LabelledImages]) -> None:
        self.parts = parts
        self.labels = torch.cat([part.labels for part in parts])
        self.num_classes = max(part.num_classes for part in parts)
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)

    @property
    def shape(self) -> Shape:  # noqa: D102
        return self.parts[0].shape

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:  # noqa: D102
        wanted = torch.as_tensor(indices)
        number = torch.bucketize(wanted, self.starts[1:], right=True)
        order = number.argsort(stable=True)
        groups = (wanted - self.starts[number])[order].split(number.bincount(minlength=len(self.parts)).tolist())
        found = [part.images(group) for part, group in zip(self.parts, groups, strict=True) if len(group)]
        there = next((images.device for images in found if images.device.type != "cpu"), torch.device("cpu"))
        joined = torch.cat([images.to(there, non_blocking=True) for images in found])
        return joined[on_device(order.argsort(), there)]

    def on(self, device: torch.device) -> JoinedImages:  # noqa: D102
        return JoinedImages([part.on(device) for part in self.parts])


def replay_order(pools: Sequence[Pool], length: int, seed: int, epoch: int) -> tuple[JoinedImages, Tensor]:
    """The pools' images, and the indices among them that an epoch replays: int64 ``(length,)``.

    Pools take turns in proportion to their shares, and within a pool its classes, in a new random order each time: any
    stretch holds each class of a pool as often, give or take two. A class shows each of its images before
    any comes again. A function of (pools, length, seed, epoch) alone.
    """
    images = JoinedImages([samples.images for _, samples in pools])
    turns = _turns([share for share, _ in pools], length)
    order = torch.empty(length, dtype=torch.int64)
    for number, (_, samples) in enumerate(pools):
        mine = (turns == number).nonzero().flatten()
        if not len(mine):  # a small share of a short epoch
            continue
        generator = keyed_generator(seed, Purpose.REPLAY, epoch * len(pools) + number)
        order[mine] = images.starts[number] + _balanced(samples, len(mine), generator)
    return images, order


def _turns(shares: Sequence[float], length: int) -> Tensor:
    """Whose turn it is: at every position the pool that is furthest behind its share."""
    given = torch.zeros(len(shares), dtype=torch.float64)
    wanted = torch.tensor(shares, dtype=torch.float64)
    turns = torch.empty(length, dtype=torch.int64)
    for position in range(length):
        turns[position] = next_ = int((wanted * (position + 1) - given).argmax())
        given[next_] += 1
    return turns


def _balanced(samples: Samples, length: int, generator: torch.Generator) -> Tensor:
    labels = [label for label, indices in samples.by_class.items() if len(indices)]
    rounds = -(-length // len(labels))
    columns = torch.stack([_in_turn(samples.by_class[label], rounds, generator) for label in labels], dim=1)
    shuffled = torch.rand(columns.shape, generator=generator).argsort(1)
    return columns.gather(1, shuffled).flatten()[:length]


def _in_turn(indices: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """All indices in a random order, then all again in another, until there are enough."""
    times = -(-length // len(indices))
    return torch.cat([indices[torch.randperm(len(indices), generator=generator)] for _ in range(times)])[:length]
