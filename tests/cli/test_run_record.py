from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cl_diffusion.cli.run_folder import RunFolder
from cl_diffusion.cli.run_record import begin_session

TRAINER: Any = SimpleNamespace(
    is_global_zero=True,
    ckpt_path=None,
    world_size=1,
    strategy=SimpleNamespace(root_device=torch.device("cpu")),
    current_epoch=2,
    max_epochs=2,
)


def outcomes(folder: Path) -> list[str | None]:
    return [session["outcome"] for session in json.loads((folder / "run.json").read_text())["sessions"]]


def test_a_fit_that_is_refused_before_training_says_nothing_of_the_one_that_was_killed(tmp_path: Path) -> None:
    begin_session(tmp_path, TRAINER, ["fit"], "then")  # and killed
    callback: Any = RunFolder(None, None, "a: 1", tmp_path, ["fit"])  # type: ignore[arg-type]
    callback.on_exception(TRAINER, None, ValueError("refused in setup"))
    assert outcomes(tmp_path) == [None]
    callback.on_train_start(TRAINER, None)
    callback.on_exception(TRAINER, None, KeyboardInterrupt())
    assert outcomes(tmp_path) == [None, "interrupted by KeyboardInterrupt"]


@pytest.mark.parametrize(("epoch", "outcome"), [(0, "stopped"), (1, "stopped"), (2, "finished")])
def test_a_fit_that_ends_before_its_last_epoch_was_stopped(epoch: int, outcome: str, tmp_path: Path) -> None:
    callback: Any = RunFolder(None, None, "a: 1", tmp_path, ["fit"])  # type: ignore[arg-type]
    callback.on_train_start(TRAINER, None)
    callback.on_train_end(SimpleNamespace(**{**vars(TRAINER), "current_epoch": epoch}), None)
    assert outcomes(tmp_path) == [outcome]
