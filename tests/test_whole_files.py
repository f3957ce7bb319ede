from __future__ import annotations

from pathlib import Path

import pytest

from cl_diffusion.whole_files import write_rows, written_whole


def test_a_file_is_replaced_when_it_is_whole_and_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.csv"
    write_rows(path, ("task", "value"), [(1, "a")])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="halfway"):
        _break_off(path)
    assert path.read_bytes() == before == b"task,value\r\n1,a\r\n"
    assert [each.name for each in path.parent.iterdir()] == ["figures.csv"]


def _break_off(path: Path) -> None:
    before = path.read_bytes()
    with written_whole(path) as partial:
        partial.write_text("half")
        assert path.read_bytes() == before
        raise RuntimeError("halfway")
