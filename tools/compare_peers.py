"""How does this project compare with other libraries of continual learning, on one class-incremental problem?

    python tools/compare_peers.py --environments envs --json peers.json

scikit-learn's 8x8 digits as five tasks of two classes, a classifier with two hidden layers of 100 and all ten outputs
from the start, Adam at 2e-3 created anew for each task, batches of 32; every library the same data, first weights
(checked by their hash), order of tasks, epochs and seeds, through its own public interface and at the strength that
``--sweep`` found best for it on seeds that the table does not use. Each library has an environment of its own in
``--environments`` (several GB each; made where missing, used again), this project that of the tool. Each method runs in
a process of its own on one thread, the libraries in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.environments import alone, last_line, python_of
from peers.libraries import LIBRARIES, METHODS, NOT_RUN, REMARKS, SCRIPTS, Library
from peers.user_lines import user_lines
from side_by_side import environment
from tables import interval, table

from cl_diffusion.metrics import ContinualMatrix

STRENGTHS = SCRIPTS / "strengths.json"
"""By library and method, as the newest sweep found them."""
GRID = {
    **{method: [10.0**power for power in range(-4, 8)] for method in ("ewc", "si", "mas")},
    "lwf": [10.0**power for power in range(-2, 4)],
}
"""The same for every library, and as coarse: what they multiply differs by powers of ten."""
SWEPT_SEEDS = (100, 101, 102)
Row = dict[str, Any]


def rows_of(library: Library, python: Path, jobs: Sequence[Row]) -> list[Row]:
    """What a library's script says of each job; of a job that it says nothing of, why."""
    command = [str(python), str(library.path), json.dumps(list(jobs))]
    done = subprocess.run(command, capture_output=True, text=True, env=alone() if library.installs else None)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    why = f"exit {done.returncode}: {last_line(done.stderr)}"
    return rows + [{"library": library.name, **job, "failed": why} for job in jobs[len(rows) :]]


def figures(row: Row) -> Row:
    """Average accuracy after the last task, and forgetting as ``ContinualMatrix`` has it."""
    matrix = ContinualMatrix("accuracy", higher_is_better=True)
    for after, accuracies in enumerate(row["accuracy"], start=1):
        for task, value in enumerate(accuracies, start=1):
            matrix.record(after, task, value)
    return {**row, "average": matrix.average(), "forgetting": matrix.forgetting()}


def best(rows: Sequence[Row]) -> Row:
    """The strength of the highest mean accuracy by library and method, of those that went through on every seed.

    Of several as high, the lowest.
    """
    tried: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        tried.setdefault((row["library"], row["method"], row["strength"]), []).append(row)
    means = {
        key: statistics.mean(figures(row)["average"] for row in of)
        for key, of in tried.items()
        if not any("failed" in row for row in of)
    }
    found: Row = {}
    for library, method, strength in sorted(means, key=lambda key: (-means[key], key[2])):
        found.setdefault(library, {}).setdefault(method, strength)
    return found


def sweep(pythons: dict[Library, Path], epochs: int) -> list[Row]:
    """Every strength of the grid, for every library, on each of the seeds that are left out of the table."""
    rows = []
    for library, python in pythons.items():
        jobs = [
            {"method": method, "seed": seed, "strength": strength, "epochs": epochs}
            for method in library.methods
            for strength in GRID.get(method, [])
            for seed in SWEPT_SEEDS
        ]
        rows += rows_of(library, python, jobs)
    return rows


def measured(
    pythons: dict[Library, Path], methods: Sequence[str], seeds: Sequence[int], epochs: int, strengths: Row
) -> list[Row]:
    """One process a method and library; the libraries in turns, and each of them first in its turn."""
    rows, order = [], list(pythons)
    for method in methods:
        for library in order:
            if method in library.methods:
                strength = strengths.get(library.name, {}).get(method)
                jobs = [{"method": method, "seed": seed, "strength": strength, "epochs": epochs} for seed in seeds]
                rows += rows_of(library, pythons[library], jobs)
        order = order[1:] + order[:1]
    return rows


def lines_of(rows: Sequence[Row]) -> list[list[str]]:
    """Of the table: a line a method and library that went through on every seed, or why it did not."""
    found = []
    for method in METHODS:
        for library in LIBRARIES:
            mine = [row for row in rows if (row["library"], row["method"]) == (library.name, method)]
            if not mine:
                continue
            if failures := [row["failed"] for row in mine if "failed" in row]:
                found.append([method, library.name, "", f"failed: {failures[0]}", *[""] * 6])
                continue
            finished, counted = [figures(row) for row in mine], user_lines(library.path)
            strength = mine[0]["strength"]
            found.append([method, library.name, "" if strength is None else f"{strength:g}"])
            for name in ("average", "forgetting", "seconds", "cpu_seconds", "pass_seconds"):
                values = [row[name] for row in finished if row[name] is not None]
                found[-1].append(interval(values))
            peak, idle = (max(row[name] for row in finished) for name in ("peak_mib", "idle_mib"))
            found[-1] += [f"{peak:.0f} ({idle:.0f})", f"{counted[method]} + {counted['every']}"]
    return found


def notes(rows: Sequence[Row], missing: dict[str, str]) -> list[str]:
    """What stands under the table: versions, who is missing, and whether all began alike."""
    versions = {row["library"]: row["versions"] for row in rows if "versions" in row}
    said = [f"{name}: {', '.join(f'{p} {v}' for p, v in found.items())}" for name, found in versions.items()]
    said += [f"not in the table: {name}: {why}" for name, why in missing.items()]
    said += REMARKS
    for seed in sorted({row["seed"] for row in rows}):
        starts = {row["library"]: row["start"] for row in rows if row["seed"] == seed and "start" in row}
        if len(set(starts.values())) > 1:
            said.append(f"seed {seed}: first weights or data differ between libraries: {starts}")
    return said


HEAD = (
    "method",
    "library",
    "strength",
    "accuracy",
    "forgetting",
    "training, s",
    "of the processor, s",
    "importance passes, s",
    "peak MiB (before training)",
    "lines: method + every",
)


def interpreters(names: Sequence[str], environments: Path) -> tuple[dict[Library, Path], dict[str, str]]:
    """Those that are installed, and why others are not."""
    pythons, missing = {}, {}
    for library in LIBRARIES:
        if library.name in names:
            try:
                pythons[library] = python_of(library, environments)
            except RuntimeError as error:
                missing[library.name] = str(error)
    return pythons, missing


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [library.name for library in LIBRARIES]
    parser.add_argument("--environments", type=Path, required=True, help="folder of the libraries' environments")
    parser.add_argument("--libraries", nargs="+", default=names, choices=names)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="of each task, 5 by default")
    parser.add_argument("--sweep", action="store_true", help=f"only search strengths, and write {STRENGTHS.name}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pythons, missing = interpreters(options.libraries, options.environments)
    known = json.loads(STRENGTHS.read_text()) if STRENGTHS.exists() else {}
    if options.sweep:
        rows = sweep(pythons, options.epochs)
        STRENGTHS.write_text(json.dumps({**known, **best(rows)}, indent=2) + "\n")
        print(json.dumps(best(rows), indent=2))
    else:
        rows = measured(pythons, options.methods, options.seeds, options.epochs, known)
        print(table(HEAD, lines_of(rows)) + "\n")
        print("\n".join(f"- {note}" for note in notes(rows, {**missing, **NOT_RUN})))
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "rows": rows, "missing": missing}, indent=2))


if __name__ == "__main__":
    main()
