"""The parts of a page that show pictures of a run: samples and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_diffusion.report.audit import PICTURES, Audit
from cl_diffusion.report.comparison import Comparison, flattened
from cl_diffusion.report.pictures import embedded, rows_of
from cl_diffusion.report.run import Run
from cl_diffusion.report.seeds import told


@dataclass(frozen=True)
class Samples:
    """The pictures of one method's first run, by boundary, with the class of each row where they say it.

    ``smaller``: some were made smaller for the page.
    """

    label: str
    pictures: Mapping[int, tuple[str, Sequence[str]]]
    smaller: bool


@dataclass(frozen=True)
class AuditPage:
    """An audit to read: its pictures with what they show, its figures by part and band."""

    title: str
    verdict: Sequence[str]
    pictures: Sequence[tuple[str, str, str]]
    figures: Mapping[str, Mapping[str, Sequence[tuple[str, str, str, bool]]]]
    about: Mapping[str, str]


def samples(comparison: Comparison) -> list[Samples]:
    """Of every method that has drawn some."""
    found = []
    for method in comparison.methods:
        of = method.runs[0]
        read = {after: (*embedded(path), rows_of(path)) for after, path in of.samples.items()}
        if read:
            pictures = {after: (address, rows) for after, (address, _, rows) in read.items()}
            found.append(Samples(of.name, pictures, any(smaller for _, smaller, _ in read.values())))
    return found


def audit_pages(comparison: Comparison) -> list[AuditPage]:
    """Every audit of every run."""
    return [_audit(run, audit, len(comparison.runs) > 1) for run in comparison.runs for audit in run.audits]


def _audit(run: Run, audit: Audit, several: bool) -> AuditPage:
    pictures = [(name, embedded(path)[0], PICTURES[name]) for name, path in audit.pictures.items()]
    figures = {
        part: {band: [_figure(name, of) for name, of in by_name.items()] for band, by_name in bands.items()}
        for part, bands in audit.figures.items()
        if bands
    }
    title = f"{run.name}, {audit.name}" if several else audit.name
    return AuditPage(title, audit.verdict, pictures, figures, flattened(audit.provenance))


def _figure(name: str, of: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    """Name, value, interval, and whether its samples support it."""
    value, low, high = (of.get(key) for key in ("value", "low", "high"))
    interval = "" if low is None or high is None else f"{told(float(low))} to {told(float(high))}"
    return name, "–" if value is None else told(float(value)), interval, bool(of.get("known"))
