"""What makes a module's optimizer or scheduler, and is no part of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Factory:
    """A callable that copies of a module share.

    Under LightningCLI it holds on to the command, and so to the Trainer and the data: a copy of the module, such as
    averaged weights are, would hold copies of these, and where a Trainer has started processes there are none.

    Args:
        make: the callable.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *given: Any) -> Any:
        """What it makes."""
        return self._make(*given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Factory:
        return self


def factory(make: Callable[..., Any] | None) -> Factory | None:
    """The callable as one that copies share; None where there is none."""
    return None if make is None else Factory(make)
