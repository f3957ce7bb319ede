"""Whether two sets of gradients have a direction in common, beside whether each has one at all."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from cl_diffusion.metrics.gram import Gram, relative_error, signed_root

Direction = Literal["leading", "mean"]


class Alignment(NamedTuple):
    """Cosines of directions that are estimated on halves, so that all are alike in their sampling noise.

    Of leading eigenvectors without their sign, of mean gradients with it.

    Attributes:
        itself: between the two halves of the first set. A direction that does not agree with itself is not known.
        other_itself: between those of the second.
        across: between a half of the one and a half of the other: the mean over all four pairs, or over the two that
            share no sample.
        corrected: what ``across`` would be without sampling noise, as far as that is orthogonal to the other direction
            and shortens each estimate alike (of eigenvalues that are nearly equal it is not: it mixes their
            directions). Of mean gradients ``across / sqrt(itself * other_itself)``. The mean of cosines without sign
            takes noise for agreement, so that where an eigenvector is compared its square is estimated
            (``squared_cosine``), and this is its root, negative where sampling noise takes the square there. NaN where
            a set does not agree with itself at all.
    """

    itself: float
    other_itself: float
    across: float
    corrected: float


def alignment(
    gram: Gram,
    own: Tensor,
    other: Tensor,
    direction: Direction,
    other_direction: Direction | None = None,
    *,
    paired: bool = False,
) -> Alignment:
    """Of two sets of samples, given by their positions and halved by turns: halves are random where the order is.

    Args:
        gram: of the gradients of both.
        own: positions of the first set.
        other: of the second.
        direction: the leading eigenvector of the second moment, or the mean gradient.
        other_direction: of the second set, if it is another.
        paired: the sets hold the same samples in the same order, as gradients at other noise, of another loss, or the
            very same. What the gradients of a sample share would make halves of the same samples alike, so only
            different halves are compared across.

    Raises:
        ValueError: sets of fewer than four samples, or that are paired and of different sizes.
    """
    if min(len(own), len(other)) < 4:
        raise ValueError(f"sets of {len(own)} and {len(other)} samples; expected four or more of each, to be quartered")
    if paired and len(own) != len(other):
        raise ValueError(f"sets of {len(own)} and {len(other)} samples; expected as many in sets that are paired")
    second = other_direction or direction
    a, b = _parts(gram, own, direction, 2), _parts(gram, other, second, 2)
    signed = direction == second == "mean"
    itself, other_itself = _itself(gram, a, direction), _itself(gram, b, second)
    pairs = [(i, j) for i in range(2) for j in range(2) if i != j or not paired]
    cosines = [gram.cosine(a[i], b[j]) for i, j in pairs]
    across = statistics.mean(cosines if signed else map(abs, cosines))
    if not (itself > 0 and other_itself > 0):
        corrected = math.nan
    elif signed:
        corrected = across / math.sqrt(itself * other_itself)
    else:
        corrected = signed_root(squared_cosine(gram, own, other, direction, second, paired=paired))
    return Alignment(itself, other_itself, across, corrected)


def squared_cosine(
    gram: Gram, own: Tensor, other: Tensor, direction: Direction, other_direction: Direction, *, paired: bool
) -> float:
    """Of the directions of two sets, without sampling noise: ``cos(a_0, b_0) cos(a_1, b_1)`` over both split cosines.

    All four are of different samples, halves or (of sets that are paired) quarters of them in every order, so that of
    directions that are orthogonal the product is 0 in the mean; an eigenvector's sign is that of ``cos(a_0, a_1)``.
    NaN where a set does not agree with itself.
    """
    number = 4 if paired else 2
    a, b = _parts(gram, own, direction, number), _parts(gram, other, other_direction, number)
    itself = _itself(gram, a, direction) * _itself(gram, b, other_direction)
    products = []
    for i, j in itertools.combinations(range(number), 2):
        sign = _sign(gram, a[i], a[j], direction)
        rest = [k for k in range(number) if not paired or k not in (i, j)]
        for k, m in itertools.permutations(rest, 2):
            both = sign * _sign(gram, b[k], b[m], other_direction)
            products.append(both * gram.cosine(a[i], b[k]) * gram.cosine(a[j], b[m]))
    return statistics.mean(products) / itself if itself > 0 else math.nan


def _sign(gram: Gram, one: Tensor, two: Tensor, direction: Direction) -> float:
    """By which an eigenvector of either sign is turned to another; a mean has its own."""
    return 1.0 if direction == "mean" else math.copysign(1.0, gram.inner(one, two))


def _itself(gram: Gram, parts: Sequence[Tensor], direction: Direction) -> float:
    """The mean cosine of different parts."""
    cosines = [gram.cosine(one, two) for one, two in itertools.combinations(parts, 2)]
    return statistics.mean(cosines if direction == "mean" else map(abs, cosines))


def _parts(gram: Gram, samples: Tensor, direction: Direction, number: int) -> list[Tensor]:
    """The direction of each part of the samples, by turns."""
    find = gram.leading if direction == "leading" else gram.mean
    return [find(samples[start::number]) for start in range(number)]


class HeldOut(NamedTuple):
    """Of a direction ``u`` that was found on other samples.

    Attributes:
        share: ``u^T F u / tr F``.
        error: ``|F - c u u^T|_F / |F|_F`` with the best ``c``, without the bias of few samples (``relative_error``): of
            a rank one along what half of the samples find, which is no less than that of the best rank one.
    """

    share: float
    error: float


def held_out(gram: Gram, samples: Tensor, direction: Direction) -> HeldOut:
    """On each half of the samples with the direction of the other, both ways together; NaN where there is none."""
    halves = samples[::2], samples[1::2]
    along = trace = kept = whole = 0.0
    for one, other in (halves, halves[::-1]):
        u = gram.leading(one) if direction == "leading" else gram.mean(one)
        length = gram.inner(u, u)
        if not length > 0:
            return HeldOut(math.nan, math.nan)
        u = u / length**0.5
        along += gram.along(u, other)
        trace += float(gram.products.diagonal()[other].sum()) / len(other)
        kept += gram.along_squared(u, other)
        whole += gram.norm_squared(other)
    return HeldOut(along / trace if trace > 0 else math.nan, relative_error(kept, whole))
