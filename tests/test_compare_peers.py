"""The comparison with other libraries, without any of them: its arithmetic, its counting, this project's own side."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
OWN, OTHER = "cl_diffusion", "Avalanche"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS / "peers"))
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("compare_peers")


def row(library: str = OWN, method: str = "ewc", seed: int = 0, **others: Any) -> dict[str, Any]:
    """What a script says of a stream of two tasks: the first is half forgotten."""
    said = {
        "library": library,
        "method": method,
        "seed": seed,
        "strength": 10.0,
        "accuracy": [[0.9], [0.45, 0.7]],
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "pass_seconds": None,
        "peak_mib": 900.0,
        "idle_mib": 800.0,
        "start": "abc",
        "versions": {"torch": "1"},
    }
    return {**said, **others}


def script(folder: Path, text: str) -> Any:
    """A library whose script is ``text``."""
    from peers.libraries import Library

    (folder / "script.py").write_text(text)
    return Library(OTHER, str(folder / "script.py"), ("ewc",), (("nothing",),))


def test_accuracy_and_forgetting_are_those_of_the_continual_matrix(tool: ModuleType) -> None:
    found = tool.figures(row())
    assert found["average"] == pytest.approx((0.45 + 0.7) / 2)
    assert found["forgetting"] == pytest.approx((0.45 + 0.0) / 2)


def test_the_best_strength_is_that_of_the_highest_accuracy_and_the_lowest_of_equals(tool: ModuleType) -> None:
    worse = [[0.9], [0.1, 0.2]]
    rows = [row(strength=100.0), row(strength=10.0), row(strength=1.0, accuracy=worse), row(OTHER, strength=5.0)]
    failed = {"library": OWN, "method": "ewc", "seed": 0, "strength": 0.1, "failed": "FloatingPointError"}
    assert tool.best([*rows, failed]) == {OWN: {"ewc": 10.0}, OTHER: {"ewc": 5.0}}


def test_the_best_strength_is_best_on_the_mean_of_the_seeds_and_failed_on_none(tool: ModuleType) -> None:
    worse, better = [[0.9], [0.1, 0.2]], [[0.9], [0.9, 0.9]]
    once = [row(strength=1.0, accuracy=better), row(strength=1.0, seed=1, accuracy=worse)]
    steady = [row(strength=10.0), row(strength=10.0, seed=1)]
    unfinished = [row(strength=0.1, accuracy=better), {"failed": "no", **dict(row(strength=0.1, seed=1))}]
    assert tool.best([*once, *steady, *unfinished]) == {OWN: {"ewc": 10.0}}


def test_a_line_of_the_table_has_means_with_their_errors_over_seeds(tool: ModuleType) -> None:
    rows = [row(seed=0), row(seed=1, accuracy=[[0.9], [0.65, 0.7]], peak_mib=950.0)]
    (line,) = tool.lines_of(rows)
    assert len(line) == len(tool.HEAD)
    assert line[:5] == ["ewc", OWN, "10", "0.625 +- 0.050", "0.175 +- 0.050"]
    assert line[7] == ""  # no pass over the data
    assert line[8] == "950 (800)"
    assert " + " in line[9]


def test_a_method_that_fails_on_one_seed_is_told_and_has_no_figures(tool: ModuleType) -> None:
    failed = {"library": OTHER, "method": "ewc", "seed": 1, "strength": 1.0, "failed": "ValueError: no"}
    lines = tool.lines_of([row(), row(OTHER), failed])
    assert [line[1] for line in lines] == [OWN, OTHER]
    assert lines[1][3] == "failed: ValueError: no"
    assert len(lines[1]) == len(tool.HEAD)


def test_a_script_that_ends_early_leaves_a_reason_for_every_job_that_it_did_not_do(
    tool: ModuleType, tmp_path: Path
) -> None:
    text = "import json\nprint('noise')\nprint(json.dumps({'library': 'Avalanche', 'seed': 0}), flush=True)\n1 / 0\n"
    rows = tool.rows_of(script(tmp_path, text), Path(sys.executable), [{"seed": 0}, {"seed": 1}])
    assert rows[0] == {"library": OTHER, "seed": 0}
    assert rows[1] == {"library": OTHER, "seed": 1, "failed": "exit 1: ZeroDivisionError: division by zero"}


def test_a_library_that_does_not_install_is_told_with_what_pip_said_last(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peers import environments

    said = "ERROR: No matching distribution found for avalanche-lib\n\n[notice] a new release of pip is available\n"
    refused = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(environments.venv, "create", lambda folder, **options: folder.mkdir(parents=True))
    monkeypatch.setattr(environments.subprocess, "run", lambda *words, **options: refused)
    pythons, missing = tool.interpreters([OWN, OTHER], tmp_path)
    assert [library.name for library in pythons] == [OWN]
    assert missing[OTHER].endswith("ERROR: No matching distribution found for avalanche-lib")
    assert any(OTHER in note and "No matching" in note for note in tool.notes([row()], missing))


def test_an_environment_is_made_once_and_again_where_other_packages_are_wanted(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peers import environments
    from peers.libraries import Library

    made: list[Path] = []
    monkeypatch.setattr(environments.venv, "create", lambda f, **o: (f.mkdir(exist_ok=True), made.append(f)))
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(environments.subprocess, "run", lambda *words, **options: done)
    for package in ("one", "one", "two"):
        environments.python_of(Library("x", "x.py", (), ((package,),)), tmp_path)
    assert len(made) == 2


def test_lines_between_markers_count_without_comments_docstrings_and_gaps(tool: ModuleType, tmp_path: Path) -> None:
    text = (
        "import os\n# lines: every\nimport x\n\n# end\n"
        'def f():\n    """Not."""\n    # lines: ewc\n    # why\n    """A claim."""\n    a = 1\n    b = 2\n    # end\n'
        "# lines: ewc\nc = 3\n# end\n"
    )
    (tmp_path / "some.py").write_text(text)
    assert tool.user_lines(tmp_path / "some.py") == {"every": 1, "ewc": 3}


@pytest.mark.parametrize("text", ["# lines: a\n# lines: b\n# end\n", "# lines: a\nx = 1\n"])
def test_a_marker_within_another_or_without_an_end_is_refused(tool: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "some.py").write_text(text)
    with pytest.raises(ValueError, match=r"some\.py"):
        tool.user_lines(tmp_path / "some.py")


def test_every_script_marks_what_each_of_its_methods_takes(tool: ModuleType) -> None:
    for library in tool.LIBRARIES:
        counted = tool.user_lines(library.path)
        wanted = {"every", *library.methods} - ({"fine-tuning"} if library.name == OWN else set())
        assert set(counted) == wanted, library.name


def test_libraries_take_turns_at_being_first(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "rows_of", lambda library, python, jobs: [row(library.name, **job) for job in jobs])
    pythons = dict.fromkeys(tool.LIBRARIES[:2], Path("python"))
    rows = tool.measured(pythons, ["ewc", "si"], [0, 1], 1, {OWN: {"ewc": 3.0}})
    assert [r["library"] for r in rows] == [OWN, OWN, OTHER, OTHER, OTHER, OTHER, OWN, OWN]
    assert [r["strength"] for r in rows][:3] == [3.0, 3.0, None]


def test_other_first_weights_are_told(tool: ModuleType) -> None:
    assert not any("differ" in note for note in tool.notes([row(), row(OTHER)], {}))
    (note,) = [n for n in tool.notes([row(), row(OTHER, start="def")], {}) if "differ" in n]
    assert note.startswith("seed 0")


@pytest.mark.parametrize("method", ["fine-tuning", "ewc", "si", "mas", "lwf", "replay"])
def test_this_projects_own_side_runs(tool: ModuleType, method: str) -> None:
    problem, own = (importlib.import_module(name) for name in ("problem", "cl_diffusion_run"))
    found = problem.trained(problem.Job(method, seed=0, strength=1.0, epochs=2, tasks=2), own.train)
    assert [len(accuracies) for accuracies in found["accuracy"]] == [1, 2]
    assert found["accuracy"][0][0] > 0.9
    assert found["cpu_seconds"] > 0
    assert (found["pass_seconds"] is not None) == (method in ("ewc", "mas"))
    assert found["peak_mib"] > 0


def test_weights_and_data_begin_the_same_for_a_seed_and_otherwise_for_another(tool: ModuleType) -> None:
    problem = importlib.import_module("problem")
    starts = [problem.trained(problem.Job("none", seed, None, 1), lambda *rest: None)["start"] for seed in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]


def test_the_clock_stands_still_while_tasks_are_measured(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = importlib.import_module("problem")
    watch = problem.Watch(problem.network(), problem.stream_of(problem.Job("none", 0, None, 1)))
    now = [0.0]
    monkeypatch.setattr(problem.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(problem, "accuracy", lambda *rest: now.__setitem__(0, now[0] + 100) or 0.5)
    for _ in range(2):
        watch.start()
        now[0] += 3
        watch.task_learned()
    assert watch.seconds == 6


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it(tool: ModuleType, tmp_path: Path) -> None:
    text = f"import sys\nsys.path.insert(0, {str(TOOLS / 'peers')!r})\nimport json, problem\n"
    text += "print(json.dumps({'peak': problem.peak_mib()}))\n"
    held = bytearray(b"x") * 2**30
    (found,) = tool.rows_of(script(tmp_path, text), Path(sys.executable), [{}])
    assert len(held) / 2**20 > found["peak"]
