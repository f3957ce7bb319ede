"""A clock that goes when it is told to."""

from __future__ import annotations


class Seconds:
    def __init__(self) -> None:
        self.passed = 0.0

    def __call__(self) -> float:
        return self.passed

    def wait(self, seconds: float) -> None:
        self.passed += seconds
