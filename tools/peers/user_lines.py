"""How many lines a user writes, counted between markers in a library's script."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

BEGIN, END = "# lines: ", "# end"


def user_lines(path: Path) -> Counter[str]:
    """Lines between ``# lines: METHOD`` and ``# end``, of each method; ``every`` is what all of them need.

    Empty lines, comments and docstrings of one line do not count. Scripts are in this project's own format (ruff, 120
    columns), so that a line is as long here as there.

    Raises:
        ValueError: a marker begins within another, or has no end.
    """
    counted: Counter[str] = Counter()
    method = None
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if text.startswith(BEGIN):
            if method is not None:
                raise ValueError(
                    f"{path.name}, line {number}: {text!r} within the lines of {method!r}; end those first"
                )
            method = text.removeprefix(BEGIN)
        elif text == END:
            method = None
        elif method is not None and text and not text.startswith(("#", '"""')):
            counted[method] += 1
    if method is not None:
        raise ValueError(f"{path.name}: the lines of {method!r} have no {END!r}")
    return counted
