"""A loss that is the same in every pass, for an estimator whose passes must see one matrix."""

from __future__ import annotations

import torch

from cl_diffusion.fisher.finite import num_not_finite
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.processes import gathered_objects


def require_repeatable(samples: Samples) -> None:
    """Refuse a loss that changes from pass to pass; one whose draws are keyed does not.

    Raises:
        FloatingPointError: a loss of the first batch is not finite.
        ValueError: the first batch has another loss the second time.
    """
    if samples.population.keyed:
        return
    passes = [next(samples.drawn(), None) for _ in range(2)]
    first, second = (None if drawn is None else samples.terms(drawn).losses for drawn in passes)
    if first is not None and (bad := num_not_finite(first)):
        raise FloatingPointError(
            f"the loss of {bad} of the {len(first)} samples of the first batch is not finite; check them for "
            "values that are not finite or far out of range, or whether training has diverged"
        )
    mine = first is None or (second is not None and torch.equal(first, second))
    if not all(gathered_objects(mine)):
        raise ValueError(
            "the loss of the first batch changes from pass to pass although torch's generator was seeded alike; "
            "make the draws in `draw(batch, keys)`, or draw from torch's global generator"
        )
