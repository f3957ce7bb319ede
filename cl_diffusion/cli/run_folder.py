"""A run lives in one named folder, and nothing in it is ever overwritten by another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from cl_diffusion.checkpoint_files import checkpoints_by_age, damage, plain_checkpoint, require_whole
from cl_diffusion.cli.run_record import begin_session, end_session, now
from cl_diffusion.whole_files import written_whole

CONFIGURATION = "config.yaml"
LAST = "last"


class RunFolder(SaveConfigCallback):
    """Writes a fit's configuration and record into its folder as training starts: what is refused leaves nothing."""

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Any,
        configuration: str,
        folder: Path,
        arguments: Sequence[str],
    ) -> None:
        super().__init__(parser, config)
        self.configuration = configuration
        self.folder = folder
        self.arguments = arguments
        self._begun, self._started = False, now()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: checks and restoring are still to come."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self.folder / CONFIGURATION
        if not trainer.is_global_zero:
            return
        if not path.exists():
            with written_whole(path) as partial:
                partial.write_text(self.configuration)
        begin_session(self.folder, trainer, self.arguments, self._started)
        self._begun = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            end_session(self.folder, "finished" if trainer.current_epoch >= (trainer.max_epochs or 0) else "stopped")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._begun:
            end_session(self.folder, f"interrupted by {type(exception).__name__}")


def checkpoint_to_resume(folder: Path, given: str | None) -> str | None:
    """The checkpoint that ``--ckpt_path`` means: ``last`` is the run's newest that is whole, or none where it has none.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    if given != LAST:
        return given
    newest = newest_checkpoint(folder)
    if newest is not None:
        return str(newest)
    if damaged := _checkpoints(folder):
        raise ValueError(
            f"ckpt_path={LAST!r}: none of the {len(damaged)} checkpoints of run={str(folder)!r} is whole "
            f"({damaged[0]}: {damage(damaged[0])}); remove them to start again, or name another folder with --run"
        )
    return None


def claim(folder: Path, configuration: str, checkpoint: str | None, given: str | None) -> None:
    """Refuse a folder that holds anything, unless a fit of the same configuration resumes from its newest checkpoint.

    Args:
        folder: of the run.
        configuration: of the fit, as YAML.
        checkpoint: to resume from.
        given: the same as the user has named it: with ``last``, a run that has no checkpoint yet is started again.

    Raises:
        ValueError: names the folder or the checkpoint, and where configurations differ the first difference.
    """
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(f"ckpt_path={checkpoint!r} is not a file; give the checkpoint to resume, or leave it out")
        require_whole(Path(checkpoint))
        plain_checkpoint(Path(checkpoint))
    if not folder.exists() or not any(folder.iterdir()):
        if given == LAST:
            rank_zero_info(f"run={str(folder)!r} holds no checkpoint: it starts from the beginning")
        return
    newest = newest_checkpoint(folder)
    if given is None:
        resume = f"resume it with --ckpt_path {newest}" if newest else "it has no checkpoint to go on from: remove it"
        raise ValueError(f"run={str(folder)!r} already holds files; {resume}, or name another folder with --run")
    path = folder / CONFIGURATION
    if not path.is_file():
        raise ValueError(f"run={str(folder)!r} holds files but no {CONFIGURATION}; name another folder with --run")
    if checkpoint is None:
        rank_zero_info(f"run={str(folder)!r} has no checkpoint yet: it starts again")
    elif newest is None or not newest.samefile(checkpoint):
        raise ValueError(
            f"ckpt_path={checkpoint!r} is not the newest checkpoint of run={str(folder)!r}: resuming there would "
            f"overwrite what came after it; give {newest}, or branch off into another folder with --run"
        )
    difference = _first_difference(_comparable(path.read_text()), _comparable(configuration))
    if difference is not None:
        name, before, now = difference
        raise ValueError(
            f"run={str(folder)!r} was started with another configuration: {name} was {before!r} and is now {now!r}; "
            f"resume with -c {path}, or name another folder with --run"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run that was written last; one that is damaged is passed over, with a warning."""
    for checkpoint in _checkpoints(folder):
        if (wrong := damage(checkpoint)) is None:
            return checkpoint
        rank_zero_warn(f"{checkpoint} is damaged ({wrong}) and passed over")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return checkpoints_by_age(folder / "checkpoints")


def _comparable(configuration: str) -> Any:
    """A configuration without the folder's own name, which may be spelled in many ways."""
    parsed = yaml.safe_load(configuration)
    parsed.pop("run", None)
    return parsed


def run_of_checkpoint(checkpoint: str) -> Path:
    """The folder of the run that wrote a checkpoint; where it lies in none, the checkpoint's own folder."""
    for parent in Path(checkpoint).absolute().parents:
        if (parent / CONFIGURATION).is_file():
            return parent
    return Path(checkpoint).absolute().parent


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
