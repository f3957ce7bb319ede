"""The parts of a page that say what was run: samples, differences, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_diffusion.report.audit import PICTURES, Audit
from cl_diffusion.report.comparison import Comparison, flattened
from cl_diffusion.report.logged import by_phase
from cl_diffusion.report.pictures import embedded
from cl_diffusion.report.run import Run
from cl_diffusion.report.seeds import duration, told


@dataclass(frozen=True)
class Samples:
    """The pictures of one method's first run, by boundary; ``smaller``: some were made smaller for the page."""

    label: str
    pictures: Mapping[int, str]
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
        read = {after: embedded(path) for after, path in method.runs[0].samples.items()}
        if read:
            addresses = {after: address for after, (address, _) in read.items()}
            found.append(Samples(method.runs[0].name, addresses, any(smaller for _, smaller in read.values())))
    return found


def audit_pages(comparison: Comparison) -> list[AuditPage]:
    """Every audit of every run."""
    return [_audit(run, audit, len(comparison.runs) > 1) for run in comparison.runs for audit in run.audits]


def provenance(run: Run) -> dict[str, str]:
    """What is known of how a run came about, in words."""
    sessions: list[Mapping[str, Any]] = list(run.record.get("sessions", ()))
    said = {"folder": str(run.folder), "seed": str(run.configuration.get("seed_everything", "not known"))}
    if sessions:
        newest = sessions[-1]
        said["started"] = str(sessions[0].get("started", "not known"))
        said["ended"] = (
            f"{newest['ended']}, {newest.get('outcome', 'not known')}" if newest.get("ended") else "not known"
        )
        if len(sessions) > 1:
            said["interrupted and resumed"] = f"{len(sessions) - 1} times"
        said["command"] = str(newest.get("command", "not known"))
        said["machine"] = str(newest.get("device", "not known"))
        said |= {f"revision, {name}": str(of) for name, of in dict(newest.get("revisions") or {}).items()}
        said["versions"] = ", ".join(f"{name} {of}" for name, of in dict(newest.get("versions") or {}).items())
    if run.timings:
        phases = by_phase(run)
        said["wall time"] = f"{duration(sum(phases.values()))}: " + ", ".join(
            f"{phase} {duration(seconds)}" for phase, seconds in phases.items()
        )
    if "held_out_accuracy" in run.yardstick:
        accuracy = told(float(run.yardstick["held_out_accuracy"]))
        said["reference classifier"] = f"{run.yardstick.get('reference_classifier')}, held-out accuracy {accuracy}"
    return said | ({"not read": "; ".join(run.notes)} if run.notes else {})


def packages(run: Run) -> dict[str, str]:
    """All installed packages of the newest session, by name."""
    sessions = list(run.record.get("sessions", ()))
    return (
        {name: str(version) for name, version in dict(sessions[-1].get("packages") or {}).items()} if sessions else {}
    )


def configuration(run: Run) -> dict[str, str]:
    """Every value of the resolved configuration, by its path."""
    return flattened(run.configuration) if run.configuration else {}


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
