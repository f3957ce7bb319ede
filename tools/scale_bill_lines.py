"""A bill as the lines of a table."""

from __future__ import annotations

from scale_bill import GB, Bill, Part

HEAD = [
    "part",
    "GB on GPU",
    "all on it",
    "fits",
    "if sharded",
    "GPU-h a task",
    "a stream",
    "of training",
    "host GB",
    "disk GB",
]


def lines(bill: Bill) -> list[list[str]]:
    """A line a part, as ``HEAD`` has it."""
    parts = bill.parts()
    training = parts[0].hours
    return [_line(bill, part, training) for part in parts]


def _line(bill: Bill, part: Part, training: float) -> list[str]:
    verdict = "" if not part.gpu else "yes" if bill.fits(part) else "DOES NOT FIT"
    able = part.shards or part.whole
    sharded = f"{bill.needed(part, True) / GB:.3g}" + ("" if bill.fits(part, True) else " (no)") if able else ""
    return [
        part.name,
        told(part.gpu / GB),
        told(bill.needed(part) / GB) if part.gpu else "",
        verdict,
        sharded,
        told(part.hours / bill.scenario.tasks),
        told(part.hours),
        f"{part.hours / training:.1%}" if part.hours else "",
        told(part.host / GB),
        told(part.disk / GB),
    ]


def told(value: float) -> str:
    """Three digits; nothing of nothing."""
    return "" if not value else f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"
