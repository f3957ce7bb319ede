"""The law of every input: a correct run, or one clear error."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
PACKAGE = str(Path(__file__).parents[1] / "cl_diffusion")
STATED = (ValueError, TypeError, RuntimeError, FloatingPointError)


def is_stated(error: BaseException) -> bool:
    """Whether a ``raise`` of the package made it: what torch or numpy says of their own arguments helps nobody."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return innermost.filename.startswith(PACKAGE) and (innermost.line or "").startswith("raise ")


def outcome(call: Callable[[], Result], mentions: str) -> Result | None:
    """The result, or None where the input is refused by an error of the package that mentions what it is about."""
    try:
        return call()
    except STATED as error:
        refusal = error
    assert is_stated(refusal), f"not an error of this package: {refusal!r}"
    assert re.search(mentions, str(refusal)), f"{str(refusal)!r} does not mention {mentions!r}"
    assert len(str(refusal)) > 30, f"{str(refusal)!r} does not say what was expected"
    return None
