"""Where a penalty's gradient must diverge under stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import SGD, Optimizer

from cl_diffusion.linalg import Penalty


def stability_limit(optimizer: Optimizer, group: Mapping[str, Any]) -> float | None:
    """The largest ``learning rate * curvature`` at which a quadratic does not diverge; None where none is known.

    Plain SGD 2, heavy ball ``2 (1 + b) / (1 - dampening)``, Nesterov ``2 (1 + b) / (1 + 2 b)``. Adam's step is bounded
    whatever the curvature, so that it does not diverge; what a subclass makes of a step is not known.
    """
    if type(optimizer) is not SGD or group.get("maximize"):
        return None
    momentum = float(group.get("momentum", 0.0))
    if group.get("nesterov"):
        return 2 * (1 + momentum) / (1 + 2 * momentum)
    return 2 * (1 + momentum) / (1 - float(group.get("dampening", 0.0)) * (momentum > 0))


def diverging(optimizer: Optimizer, trained: Mapping[str, Any], penalty: Penalty, strength: float) -> str | None:
    """Why the penalty's gradient must diverge in this optimizer, or None.

    ``trained``: the parameters that take part in its step, by name. The curvature of the task comes on top, and is not
    known; weight decay is counted.
    """
    for group in optimizer.param_groups:
        limit = stability_limit(optimizer, group)
        if limit is None:
            continue
        members = {id(p) for p in group["params"]}
        curvature = strength * penalty.curvature(frozenset(name for name, p in trained.items() if id(p) in members))
        rate, decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
        if curvature > 0 and rate * (curvature + decay) > limit:
            return (
                f"learning rate {rate:g} times the penalty's curvature {curvature:.3g} (strength {strength:g}) is "
                f"{rate * curvature:.3g}, beyond {limit:.3g}, where {type(optimizer).__name__} diverges on a quadratic "
                "(if it stays there)"
            )
    return None
