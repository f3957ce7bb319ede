"""An audit as ``FisherAudit`` has written it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = {
    "directions": "bars of cosines by band: how far the leading direction and the mean gradient agree with themselves "
    "on other samples, with another task's, and with pure noise's",
    "spectra": "lines of the eigenvalues of the empirical and the true Fisher by band, as shares of the trace",
    "remainder": "bars by band of the sine between the linear denoiser's direction and the model's, and its bounds",
    "preservation": "points of measured over predicted changes of loss, for steps along each direction",
    "damage": "bars by band of what later training did to the loss, whole, along a direction and without it",
}
"""What the pictures of an audit show, by name of the file."""


@dataclass(frozen=True)
class Audit:
    """One ``audit.json`` and its pictures.

    Attributes:
        name: of the folder, such as ``audit/after_task_1``.
        verdict: in words.
        figures: by part (``figures``, ``preservation``, ``damage``, ``nonlinearity``), band and name: ``value``,
            ``low``, ``high``, ``samples``, ``known``.
        provenance: of what it is.
        pictures: by name.
    """

    name: str
    verdict: list[str]
    figures: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
    provenance: Mapping[str, Any]
    pictures: Mapping[str, Path]

    @classmethod
    def read(cls, path: Path, name: str) -> Audit:
        """From ``audit.json``.

        Raises:
            ValueError: the file is none.
        """
        try:
            content = json.loads(path.read_text())
            parts = {part: content[part] for part in ("figures", "preservation", "damage", "nonlinearity")}
            nonlinearity = {
                band: {"distance from the best linear one": of} for band, of in parts["nonlinearity"].items()
            }
            pictures = {name: path.with_name(f"{name}.png") for name in PICTURES}
            return cls(
                name,
                [str(said) for said in content["verdict"]],
                {**parts, "nonlinearity": nonlinearity},
                content["provenance"],
                {name: picture for name, picture in pictures.items() if picture.is_file()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no audit as FisherAudit writes it ({error!r}); leave this run out") from error


def audits(run: Path) -> list[Audit]:
    """All of a run's, in the order of their names and tasks."""
    found = sorted(run.glob("*/after_task_*/audit.json"), key=lambda path: (path.parts[-3], _task(path)))
    return [Audit.read(path, path.parent.relative_to(run).as_posix()) for path in found]


def _task(path: Path) -> int:
    (number,) = re.findall(r"\d+$", path.parent.name) or ["0"]
    return int(number)
