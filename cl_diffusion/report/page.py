"""One page of runs, complete in itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from cl_diffusion.report.comparison import Comparison
from cl_diffusion.report.logged import cost, plasticity, training
from cl_diffusion.report.measured import front, measured
from cl_diffusion.report.provenance import configuration, packages, provenance
from cl_diffusion.report.shown import audit_pages, samples
from cl_diffusion.report.summary import first_capital, named, summary
from cl_diffusion.report.svg import Drawings
from cl_diffusion.version import __version__
from cl_diffusion.whole_files import written_whole

GENERATOR = "cl_diffusion"


def write_report(folders: Sequence[Path], output: Path, title: str | None = None) -> Comparison:
    """Write one self-contained HTML page of run folders, and return what it compares.

    Nothing is read from anywhere when it is opened: scripts, styles and pictures are within it, and it forbids
    the rest. Every string of a run is escaped.

    Args:
        folders: of runs, or folders that hold runs. Runs whose configurations differ in the seed alone are one method.
        output: the page; an earlier report is replaced, in one move.
        title: of the page; the runs' names where not given.

    Raises:
        ValueError: a folder holds no run, or a file of one cannot be read; ``output`` is a folder, or a file that is no
            report.
    """
    _require_replaceable(output)
    comparison = Comparison.of(folders)
    page = render(comparison, title)
    try:
        with written_whole(output) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"output={str(output)!r} cannot be written ({error}); give another name") from error
    return comparison


def render(comparison: Comparison, title: str | None = None) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cl_diffusion.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["named"] = named
    environment.filters["first_capital"] = first_capital
    style, behaviour = (_own(name) for name in ("page.css", "page.js"))
    drawings = Drawings()
    return environment.get_template("page.html").render(
        title=title or _title(comparison),
        generator=f"{GENERATOR} {__version__}",
        written=datetime.now().astimezone().isoformat(" ", "seconds"),
        style=style,
        behaviour=behaviour,
        digest=base64.b64encode(hashlib.sha256(behaviour.encode()).digest()).decode(),
        comparison=comparison,
        columns=summary(comparison),
        front=front(comparison, drawings),
        measured=measured(comparison, drawings),
        samples=samples(comparison),
        training=training(comparison, drawings),
        plasticity=plasticity(comparison, drawings),
        audits=audit_pages(comparison),
        cost=cost(comparison, drawings),
        provenance=[(run, provenance(run), packages(run), configuration(run)) for run in comparison.runs],
    )


def _title(comparison: Comparison) -> str:
    """Who is compared, as far as a line holds it."""
    said = [method.said for method in comparison.methods]
    return ", ".join(said) if len(said) <= 4 else f"{len(said)} methods: {', '.join(said[:3])} and others"


def _own(name: str) -> Markup:
    return Markup((files("cl_diffusion.report") / "template" / name).read_text(encoding="utf-8"))


def _require_replaceable(output: Path) -> None:
    if output.is_dir():
        raise ValueError(
            f"output={str(output)!r} is a folder; give the name of a file, such as {output / 'report.html'}"
        )
    if (above := next(folder for folder in output.parents if folder.exists())) and not above.is_dir():
        raise ValueError(f"output={str(output)!r}: {above} is a file and no folder; give another name")
    if output.exists():
        with output.open(errors="replace") as file:
            if f'name="generator" content="{GENERATOR} ' not in file.read(4096):
                raise ValueError(f"output={str(output)!r} is a file that is no report of ours; give another name")
