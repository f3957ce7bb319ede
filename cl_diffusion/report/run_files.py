"""The files of a run's folder, each read as far as it goes, or refused by its name."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


def mapping(path: Path) -> Mapping[str, Any]:
    """Of JSON or YAML; empty where there is no file."""
    if not path.is_file():
        return {}
    with readable(path):
        read = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds {type(read).__name__}, expected names and values; leave this run out")
    return read


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file as such, said with its name."""
    try:
        yield
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, csv.Error, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({said}); leave this run out, or restore the file") from error


def rows(path: Path, columns: int) -> Iterator[list[str]]:
    """The rows below the head of a file that is replaced whole."""
    if not path.is_file():
        return
    with readable(path), path.open(newline="") as file:
        for line, row in enumerate(csv.reader(file), 1):
            if line == 1:
                continue
            try:
                if len(row) != columns:
                    raise ValueError(f"{len(row)} columns, expected {columns}")
                int(row[0]), float(row[-1])
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {row!r} ({error}); leave this run out") from error
            yield row


def log(path: Path) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """The rows, each without its empty entries. A row that a killed fit has cut off is left out."""
    if not path.is_file():
        return [], ()
    found, strange = [], 0
    with readable(path):
        text = path.read_text()
        if text and not text.endswith("\n"):  # the last figure may be the beginning of another
            text, strange = text[: text.rfind("\n") + 1], 1
        for row in csv.DictReader(io.StringIO(text)):
            if None in row or None in row.values():
                strange += 1
                continue
            numbers = {key: _number(value) for key, value in row.items() if key and isinstance(value, str) and value}
            kept = {key: value for key, value in numbers.items() if value is not None}
            strange += len(kept) < len(numbers)
            found.append(kept)
    notes = (
        (f"{path.name}: {strange} row{'s' * (strange > 1)} not whole, as a killed run leaves them",) if strange else ()
    )
    return found, notes


def _number(text: str) -> float | None:
    """None of what is no number; NaN stays NaN."""
    try:
        return float(text)
    except ValueError:
        return None if text.lower() not in ("true", "false") else math.nan


def samples(folder: Path) -> dict[int, Path]:
    """The pictures of a folder, by the number of tasks after which they were drawn."""
    found = ((re.fullmatch(r"after_task_(\d+)\.png", path.name), path) for path in folder.glob("*.png"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))
