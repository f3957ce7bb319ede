"""A run lives in one named folder, and nothing in it is ever overwritten by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from typing_extensions import override

CONFIGURATION = "config.yaml"


class RunFolder(SaveConfigCallback):
    """Writes the configuration of a fit into its folder, once (Lightning's own callback refuses to resume into it)."""

    def __init__(self, parser: LightningArgumentParser, config: Any, configuration: str, folder: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.configuration = configuration
        self.folder = folder

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = self.folder / CONFIGURATION
        if stage == "fit" and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(self.configuration)


def claim(folder: Path, configuration: str, checkpoint: str | None) -> None:
    """Refuse a folder that holds anything, unless a fit of the same configuration resumes into it.

    Raises:
        ValueError: names the folder, and where configurations differ the first difference.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if checkpoint is None:
        last = folder / "checkpoints" / "last.ckpt"
        resume = f"resume it with --ckpt_path {last}, or " if last.is_file() else ""
        raise ValueError(f"run={str(folder)!r} already holds files; {resume}name another folder with --run")
    path = folder / CONFIGURATION
    if not path.is_file():
        raise ValueError(
            f"run={str(folder)!r} holds files but no {CONFIGURATION}: it is not a run; name another with --run"
        )
    difference = _first_difference(yaml.safe_load(path.read_text()), yaml.safe_load(configuration))
    if difference is not None:
        name, before, now = difference
        raise ValueError(
            f"run={str(folder)!r} was started with another configuration: {name} was {before!r} and is now {now!r}; "
            f"resume with -c {path}, or name another folder with --run"
        )


def run_of_checkpoint(checkpoint: str, otherwise: Path) -> Path:
    """The folder of the run that wrote a checkpoint, where it is in one; else the other folder."""
    for parent in Path(checkpoint).absolute().parents:
        if (parent / CONFIGURATION).is_file():
            return parent
    return otherwise


def _first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            difference = _first_difference(before.get(key), now.get(key), inner)
            if difference is not None:
                return difference
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        differences = (_first_difference(*pair, f"{name}[{i}]") for i, pair in enumerate(zip(before, now, strict=True)))
        return next((difference for difference in differences if difference is not None), None)
    return None if before == now else (name, before, now)
