"""Whether two sets of gradients have a direction in common, beside whether each has one at all."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from cl_diffusion.metrics.gram import Gram, relative_error

Direction = Literal["leading", "mean"]


class Alignment(NamedTuple):
    """Cosines of directions that are estimated on halves, so that all are alike in their sampling noise.

    Of leading eigenvectors without their sign, of mean gradients with it.

    Attributes:
        itself: between the two halves of the first set. A direction that does not agree with itself is not known.
        other_itself: between those of the second.
        across: between a half of the one and a half of the other: the mean over all four pairs, or over the two that
            share no sample.
        corrected: ``across / sqrt(itself * other_itself)``: what ``across`` would be without sampling noise, as far as
            that is orthogonal to the other direction and shortens each estimate alike (of eigenvalues that are nearly
            equal it is not: it mixes their directions). NaN where a set does not agree with itself at all.
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
        own: positions of the first set, four or more.
        other: of the second.
        direction: the leading eigenvector of the second moment, or the mean gradient.
        other_direction: of the second set, if it is another.
        paired: the sets hold the same samples in the same order, as gradients at other noise, of another loss, or the
            very same. What the gradients of a sample share would make halves of the same samples alike, so only
            different halves are compared across.

    Raises:
        ValueError: sets that are paired, of different sizes.
    """
    if paired and len(own) != len(other):
        raise ValueError(f"sets of {len(own)} and {len(other)} samples; expected as many in sets that are paired")
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
    if not paired:
        across = (across + (cosine(a[0], b[0]) + cosine(a[1], b[1])) / 2) / 2
    known = itself > 0 and other_itself > 0
    return Alignment(itself, other_itself, across, across / math.sqrt(itself * other_itself) if known else math.nan)


class HeldOut(NamedTuple):
    """Of a direction ``u`` that was found on other samples.

    Attributes:
        share: ``u^T F u / tr F``.
        error: ``|F - c u u^T|_F / |F|_F`` with the best ``c``, without the bias of few samples (``relative_error``).
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


def _halves(gram: Gram, samples: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    find = gram.leading if direction == "leading" else gram.mean
    return find(samples[::2]), find(samples[1::2])
