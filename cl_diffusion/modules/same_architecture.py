"""A checkpoint's weights beside a model's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def require_same_architecture(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        ValueError: names the first tensor that is not in both, or not of the same shape.
    """
    for name in [*mine, *theirs]:
        have = tuple(mine[name].shape) if name in mine else "absent"
        found = tuple(theirs[name].shape) if name in theirs else "absent"
        if have != found:
            raise ValueError(
                f"the checkpoint is of another architecture: {name!r} is {found} in it and {have} in this model; build "
                "the model with the checkpoint's configuration, or start without the checkpoint"
            )
