"""``run.json``: what a run was, for whoever finds its folder a year later."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from cl_diffusion.version import __version__
from cl_diffusion.whole_files import written_whole

RECORD = "run.json"
_NAMED = ("torch", "lightning", "torchvision", "torchmetrics", "diffusers", "jsonargparse", "numpy")


def begin_session(folder: Path, trainer: Trainer, arguments: Sequence[str], started: str) -> None:
    """Add a session, of which nothing is known but how it began: a fit that is killed leaves it so."""
    sessions = _sessions(folder)
    sessions.append(
        {
            "command": shlex.join(["cl-diffusion", *arguments]),
            "from_checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "started": started,
            "ended": None,
            "outcome": None,
            "device": device(trainer),
            "platform": platform.platform(),
            "revisions": revisions(),
            **versions(),
        }
    )
    _write(folder, sessions)


def end_session(folder: Path, outcome: str) -> None:
    """Enter when and how the newest session ended."""
    sessions = _sessions(folder)
    if sessions and sessions[-1]["ended"] is None:
        sessions[-1] |= {"ended": now(), "outcome": outcome}
        _write(folder, sessions)


def device(trainer: Trainer) -> str:
    """What the processes of a fit run on."""
    first = trainer.strategy.root_device
    if first.type == "cuda":
        kind = torch.cuda.get_device_name(first)
    else:
        kind = f"{first.type}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return f"{trainer.world_size} x {kind}" if trainer.world_size > 1 else kind


def versions() -> dict[str, Any]:
    """``versions`` of what figures depend on most, and ``packages``, all that are installed."""
    installed = {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"]}
    named = {name: installed[name] for name in _NAMED if name in installed}
    ours = {"cl_diffusion": __version__, "python": platform.python_version()}
    return {"versions": ours | named, "packages": dict(sorted(installed.items(), key=lambda pair: pair[0].lower()))}


def revisions() -> dict[str, str]:
    """The git revision of the folder that the command was given in, and of this package where it is a clone."""
    package = Path(__file__).parents[1]
    cloned = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    every = {"of the working folder": Path.cwd(), "of cl_diffusion": package if cloned else None}
    found = {name: _revision(folder) for name, folder in every.items() if folder is not None}
    return {name: revision for name, revision in found.items() if revision is not None}


def _revision(folder: Path) -> str | None:
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit and commit + (", with changes" if changed else "")


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it has nothing to say, or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def now() -> str:
    """The time here, to the second."""
    return datetime.now().astimezone().isoformat(" ", "seconds")


def _sessions(folder: Path) -> list[dict[str, Any]]:
    path = folder / RECORD
    return list(json.loads(path.read_text())["sessions"]) if path.is_file() else []


def _write(folder: Path, sessions: list[dict[str, Any]]) -> None:
    with written_whole(folder / RECORD) as partial:
        partial.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n")
