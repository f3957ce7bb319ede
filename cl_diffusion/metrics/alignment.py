"""Whether two sets of gradients have a direction in common, beside whether each has one at all."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cl_diffusion.metrics.gram import Gram

Direction = Literal["leading", "mean"]


class Alignment(NamedTuple):
    """Cosines of directions that are estimated on halves, so that all are alike in their sampling noise.

    Of leading eigenvectors without their sign, of mean gradients with it.

    Attributes:
        itself: between the two halves of the first set. A direction that does not agree with itself is not known.
        other_itself: between those of the second.
        across: between a half of the one and a half of the other, the mean over all four pairs.
        corrected: ``across / sqrt(itself * other_itself)``: what ``across`` would be without sampling noise, as far as
            that is orthogonal to the other direction and shortens each estimate alike (of eigenvalues that are nearly
            equal it is not: it mixes their directions). NaN where a set does not agree with itself at all.
    """

    itself: float
    other_itself: float
    across: float
    corrected: float


def alignment(
    gram: Gram, own: Tensor, other: Tensor, direction: Direction, other_direction: Direction | None = None
) -> Alignment:
    """Of two sets of samples, given by their positions and halved by turns: halves are random where the order is.

    Where the sets are one, or hold the same samples in the same order, only different halves are compared across.

    Args:
        gram: of the gradients of both.
        own: positions of the first set, four or more.
        other: of the second.
        direction: the leading eigenvector of the second moment, or the mean gradient.
        other_direction: of the second set, if it is another.
    """
    second = other_direction or direction
    a, b = _halves(gram, own, direction), _halves(gram, other, second)
    signed = direction == second == "mean"

    def cosine(x: Tensor, y: Tensor) -> float:
        return gram.cosine(x, y) if signed else abs(gram.cosine(x, y))

    itself, other_itself = (
        gram.cosine(*halves) if kind == "mean" else abs(gram.cosine(*halves))
        for halves, kind in ((a, direction), (b, second))
    )
    across = (cosine(a[0], b[1]) + cosine(a[1], b[0])) / 2
    if not torch.equal(own, other):
        across = (across + (cosine(a[0], b[0]) + cosine(a[1], b[1])) / 2) / 2
    known = itself > 0 and other_itself > 0
    return Alignment(itself, other_itself, across, across / math.sqrt(itself * other_itself) if known else math.nan)


def held_out(gram: Gram, samples: Tensor, direction: Direction) -> tuple[float, float]:
    """``u^T F u`` and ``tr F`` on one half of the samples, with the unit ``u`` of the other: the mean of both ways."""
    found = []
    halves = samples[::2], samples[1::2]
    for one, other in (halves, halves[::-1]):
        u = gram.leading(one) if direction == "leading" else gram.mean(one)
        length = gram.inner(u, u)
        trace = float(gram.products.diagonal()[other].mean())
        found.append((gram.along(u, other) / length if length > 0 else math.nan, trace))
    return sum(each[0] for each in found) / 2, sum(each[1] for each in found) / 2


def _halves(gram: Gram, samples: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    find = gram.leading if direction == "leading" else gram.mean
    return find(samples[::2]), find(samples[1::2])
