"""The part of a page that says what was run: commands, versions, times, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_diffusion.phases import spelled
from cl_diffusion.report.comparison import flattened
from cl_diffusion.report.logged import by_phase
from cl_diffusion.report.run import Run
from cl_diffusion.report.seeds import told


def provenance(run: Run) -> dict[str, str]:
    """What is known of how a run came about, in words."""
    sessions: list[Mapping[str, Any]] = list(run.record.get("sessions") or ())
    said = {"folder": str(run.folder), "seed": str(run.configuration.get("seed_everything", "not known"))}
    if sessions:
        newest = sessions[-1]
        said["started"] = str(sessions[0].get("started", "not known"))
        said["ended"] = (
            f"{newest['ended']}, {newest.get('outcome', 'not known')}" if newest.get("ended") else "not known"
        )
        for number, session in enumerate(sessions[:-1], 1):
            said[f"session {number} of {len(sessions)}"] = _session(session)
        said["command"] = str(newest.get("command", "not known"))
        said["machine"] = str(newest.get("device", "not known"))
        said |= {f"revision, {name}": str(of) for name, of in dict(newest.get("revisions") or {}).items()}
        said["versions"] = ", ".join(f"{name} {of}" for name, of in dict(newest.get("versions") or {}).items())
    if run.timings:
        phases = by_phase(run)
        said["wall time"] = f"{spelled(sum(phases.values()))}: " + ", ".join(
            f"{phase} {spelled(seconds)}" for phase, seconds in phases.items()
        )
    if "held_out_accuracy" in run.yardstick:
        accuracy = told(float(run.yardstick["held_out_accuracy"]))
        said["reference classifier"] = f"{run.yardstick.get('reference_classifier')}, held-out accuracy {accuracy}"
    return said | ({"not read": "; ".join(run.notes)} if run.notes else {})


def _session(session: Mapping[str, Any]) -> str:
    """One that others have followed."""
    started, ended = (session.get(key) or "not known" for key in ("started", "ended"))
    outcome = session.get("outcome") or "ended without a word, as a killed fit does"
    return f"{started} to {ended}, {outcome}: {session.get('command', 'not known')} ({session.get('device')})"


def packages(run: Run) -> dict[str, str]:
    """All installed packages of the newest session, by name."""
    sessions = list(run.record.get("sessions") or ())
    return (
        {name: str(version) for name, version in dict(sessions[-1].get("packages") or {}).items()} if sessions else {}
    )


def configuration(run: Run) -> dict[str, str]:
    """Every value of the resolved configuration, by its path."""
    return flattened(run.configuration) if run.configuration else {}
