"""Whether two sets of gradients have a direction in common, beside whether each has one at all."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

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
        corrected: ``across / sqrt(itself * other_itself)``: what ``across`` would be without sampling noise, whose
            orthogonal part shortens each estimate alike. NaN where a set does not agree with itself at all.
    """

    itself: float
    other_itself: float
    across: float
    corrected: float


def alignment(gram: Gram, own: Tensor, other: Tensor, direction: Direction) -> Alignment:
    """Of two sets of samples, given by their positions and halved by turns.

    Args:
        gram: of the gradients of both.
        own: positions of the first set, four or more.
        other: of the second.
        direction: the leading eigenvector of the second moment, or the mean gradient.
    """
    find = gram.leading if direction == "leading" else gram.mean
    a, b = [find(own[start::2]) for start in (0, 1)], [find(other[start::2]) for start in (0, 1)]

    def cosine(x: Tensor, y: Tensor) -> float:
        return abs(gram.cosine(x, y)) if direction == "leading" else gram.cosine(x, y)

    itself, other_itself = cosine(*a), cosine(*b)
    across = sum(cosine(x, y) for x in a for y in b) / 4
    known = itself > 0 and other_itself > 0
    return Alignment(itself, other_itself, across, across / math.sqrt(itself * other_itself) if known else math.nan)
