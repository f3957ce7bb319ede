"""``timings.csv``: what a fit has spent its time on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cl_diffusion.phases import Part
from cl_diffusion.whole_files import write_rows

COLUMNS = ("task", "phase", "seconds")


def timings_path(trainer: Trainer) -> Path | None:
    """The file in the logger's folder, or in ``default_root_dir``; None where this process is to write none.

    That is each but the first, a ``fast_dev_run``, and, with a warning, one that would replace a file that is no
    ``timings.csv``. Every process takes part.
    """
    path = Path(trainer.log_dir or trainer.default_root_dir) / "timings.csv"  # a broadcast
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if path.exists() and not _is_ours(path):
        rank_zero_warn(
            f"{path} does not begin with {','.join(COLUMNS)}: it is kept, and no timings are written; move it, or give "
            "the Trainer another default_root_dir"
        )
        return None
    return path


def write_timings(path: Path, seconds: Mapping[Part, float]) -> None:
    """``task,phase,seconds``, by task; the file is replaced in one move."""
    rows = sorted(seconds.items(), key=lambda item: item[0][0])
    write_rows(path, COLUMNS, ((task, name, f"{spent:.3f}") for (task, name), spent in rows))


def _is_ours(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return file.readline().strip() == ",".join(COLUMNS)
