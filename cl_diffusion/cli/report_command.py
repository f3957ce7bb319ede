"""``cl-diffusion report``: the page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich
from jsonargparse import ArgumentParser

from cl_diffusion.report.page import write_report

NAME = "report"
DESCRIPTION = "Draw one page of runs: what is remembered, samples, penalties, audits, cost, configurations."


def report_parser() -> ArgumentParser:
    """Of what follows ``cl-diffusion report``."""
    parser = ArgumentParser(prog=f"cl-diffusion {NAME}", description=DESCRIPTION)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="Folders of runs, or folders that hold runs. Runs that differ in the seed alone are one method.",
    )
    parser.add_argument(
        "-o", "--output", type=str, default="report.html", help="The page. An earlier report is replaced."
    )
    parser.add_argument("--title", type=str | None, default=None, help="Of the page; by default the names of the runs.")
    return parser


def report(arguments: Sequence[str]) -> None:
    """Write the page that the arguments ask for, and say so."""
    given = report_parser().parse_args(list(arguments))
    output = Path(given.output)
    comparison = write_report([Path(run) for run in given.runs], output, given.title)
    runs, methods = len(comparison.runs), len(comparison.methods)
    counted = f"{runs} run{'s' * (runs > 1)}, {methods} method{'s' * (methods > 1)}"
    rich.get_console().print(
        f"{output}: {counted}, {output.stat().st_size / 1e6:.1f} MB", highlight=False, markup=False
    )
