"""Sums of gradients that are finite, or else the sample that is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cl_diffusion.linalg import Parameters, parameters


def require_finite(
    vector: Parameters, indices: Tensor, losses: Callable[[], Tensor], per_sample: Iterable[Parameters]
) -> None:
    """Refuse a sum of a batch's gradients that is not finite.

    Args:
        vector: the sum.
        indices: of the samples.
        losses: of the samples, asked for only where the sum is refused.
        per_sample: the gradients of the samples in chunks, likewise.

    Raises:
        FloatingPointError: names the sample and the first bad parameter, and says how many losses are not finite.
    """
    if not (overflowing := [name for name, tensor in vector.items() if not bool(tensor.isfinite().all())]):
        return
    found = losses()
    bad = num_not_finite(found)
    of_losses = f", nor is the loss of {bad} of the {len(found)} samples of its batch" if bad else ""
    if (first := _first_not_finite(per_sample)) is not None:
        row, name = first
        raise FloatingPointError(
            f"the gradient of sample {int(indices[row])} is not finite, first in parameter {name!r}{of_losses}; check "
            "that sample for values that are not finite or far out of range, or whether training has diverged"
        )
    raise FloatingPointError(
        f"a sum of finite gradients overflows in parameter {overflowing[0]!r}, in a batch of {len(indices)} samples; "
        "check them for values far out of range, or whether training has diverged"
    )


def num_not_finite(losses: Tensor) -> int:
    """How many of the losses are not finite."""
    return int((~losses.isfinite()).sum())


def _first_not_finite(per_sample: Iterable[Parameters]) -> tuple[int, str] | None:
    """The position of the first sample whose gradient is not finite, and its first such parameter."""
    position = 0
    for gradients in per_sample:
        finite = {name: parameters.flat_rows(g).isfinite().all(1) for name, g in gradients.items()}
        bad = ~torch.stack(list(finite.values())).all(0)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            return position + row, next(name for name, rows in finite.items() if not rows[row])
        position += len(bad)
    return None
