from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cl_diffusion.callbacks.diagnostics.continual_table import write_yardstick
from cl_diffusion.callbacks.diagnostics.sample_grid import log_grid
from cl_diffusion.cli.run_folder import RunFolder
from cl_diffusion.whole_files import write_rows, written_whole


def test_a_file_is_replaced_when_it_is_whole_and_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.csv"
    write_rows(path, ("task", "value"), [(1, "a")])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="halfway"):
        _break_off(path)
    assert path.read_bytes() == before == b"task,value\r\n1,a\r\n"
    assert [each.name for each in path.parent.iterdir()] == ["figures.csv"]


def _images(path: Path) -> None:
    trainer: Any = SimpleNamespace(loggers=[])
    log_grid(trainer, torch.zeros(2, 1, 8, 8), torch.arange(2), path)


def _configuration(path: Path) -> None:
    callback: Any = RunFolder(None, None, "a: 1", path.parent, ["fit"])  # type: ignore[arg-type]
    callback.on_train_start(SimpleNamespace(is_global_zero=True), None)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("yardstick.json", lambda path: write_yardstick(path, {"reference": 1})),
        ("samples.png", _images),
        ("config.yaml", _configuration),
    ],
)
def test_what_a_run_leaves_is_written_whole(
    name: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before the last move, it is not there at all."""

    def cut(partial: Path, target: Path) -> Path:
        assert partial.stat().st_size
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def _break_off(path: Path) -> None:
    before = path.read_bytes()
    with written_whole(path) as partial:
        partial.write_text("half")
        assert path.read_bytes() == before
        raise RuntimeError("halfway")
