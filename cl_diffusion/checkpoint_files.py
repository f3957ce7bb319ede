"""Checkpoints as files: found again by age, and told apart where one is damaged."""

from __future__ import annotations

import os
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch


def checkpoints_by_age(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one that was written last at the front."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's file, or None where it is whole.

    Every entry is read and held against the checksum that was written with it, which ``torch.load`` does not do: it
    refuses a file that is cut off, and gives wrong numbers of one whose bytes have changed. A file is read once.
    """
    state = checkpoint.stat()
    return _damage(checkpoint, state.st_mtime_ns, state.st_size)


@cache
def _damage(checkpoint: Path, changed: int, size: int) -> str | None:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)
    return None if broken is None else f"the checksum of its entry {broken!r} does not fit"


def require_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint that is damaged.

    Raises:
        ValueError: names the newest of the folder's other checkpoints that is whole.
    """
    wrong = damage(checkpoint)
    if wrong is None:
        return
    others = [other for other in checkpoints_by_age(checkpoint.parent) if not other.samefile(checkpoint)]
    whole = next((other for other in others if damage(other) is None), None)
    instead = (
        "there is no other in its folder that is whole"
        if whole is None
        else f"go on from {whole}, the newest that is whole"
    )
    raise ValueError(f"ckpt_path={str(checkpoint)!r} is damaged ({wrong}): {instead}")


def plain_checkpoint(checkpoint: Path, argument: str = "ckpt_path") -> dict[str, Any]:
    """What a checkpoint holds, tensors not yet read; no code of the file is run.

    Args:
        checkpoint: the file.
        argument: by which it was given, for the message.

    Raises:
        ValueError: it is no checkpoint, or holds more than tensors and plain values.
    """
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        AssertionError,
        AttributeError,
    ) as error:
        why = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), str(error))
        raise ValueError(
            f"{argument}={str(checkpoint)!r} is no checkpoint of tensors and plain values, and nothing else is read "
            f"({why.strip()[:200]}); give one that a fit of this package has written"
        ) from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise ValueError(f"{argument}={str(checkpoint)!r} holds no state_dict; expected a checkpoint of a fit")
    return loaded


def replace_file(part: Path, path: Path) -> None:
    """Give a file that is complete its name, so that at every moment the name is of the old one or the new one, whole.

    Both lie in one folder. The bytes are on the disk before the name changes.
    """
    for each in (part, part.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.replace(part, path)
