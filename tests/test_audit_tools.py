"""What tools make of audits: tables over seeds, and the figures at single timesteps."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def figure(value: float | None, known: bool = True) -> dict[str, Any]:
    half = 0.1
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "samples": 64, "known": known}


def written(folder: str, audit: dict[str, Any]) -> str:
    """An audit where a run has it."""
    path = Path(folder) / "after_task_1" / "audit.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(audit))
    return str(path)


def run(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    importlib.import_module(name).main()


def test_audits_of_several_seeds_make_means_and_what_is_not_known_is_in_brackets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, share in enumerate((0.5, 0.7)):
        figures = {"leading_share": figure(share), "v_itself": figure(0.9, known=seed == 0)}
        figures["remainder_bound_cosine"] = figure(0.05 + 0.9 * seed)
        audit = {
            "provenance": {"task": 1, "other": 2, "samples": 64, "radii": [0.01]},
            "figures": {"low": {**figures, "v_other_corrected": figure(None)}},
            "preservation": {"low": {f"loss/ratio/{0.6 + seed}": figure(1.0), "output/ratio/0.6": figure(0.9)}},
            "damage": {"low": {"loss": figure(0.2 + 0.2 * seed)}},
        }
        audit["provenance"]["damage"] = {"task": 1, "later": None}
        written(f"run_{seed}/audit", audit)
    zero, one = (str(folder / f"run_{seed}/audit/after_task_1/audit.json") for seed in (0, 1))
    run("audit_table", monkeypatch, zero, one)
    told = capsys.readouterr().out
    assert "| low | 0.60 +- 0.10 |" in told
    assert "(0.9 +- 0)" in told
    assert r"| low, r = 0.01 \|theta\| | 1 +- 0 |" in told
    assert "| low | 0.30 +- 0.10 |" in told
    assert "| low | none |" in told  # no bound holds in one of the two
    assert "Damage to task 1" in told
    run("audit_table", monkeypatch, one)
    told = capsys.readouterr().out
    assert "| low | 0.700 +- 0.051 |" in told  # of one audit, over samples
    assert "| low | 0.950 +- 0.051 |" in told
    content = json.loads(Path(one).read_text())
    same = written("run_1/other", content)
    without = written("run_2/audit", {**content, "damage": {}})
    fewer = written("run_3/audit", {**content, "provenance": {**content["provenance"], "samples": 32}})
    longer = written("run_4/audit", {**content, "provenance": {**content["provenance"], "epoch": 9}})
    damage = {**content["provenance"], "damage": {"task": 2, "later": None}}
    elsewhere = written("run_5/audit", {**content, "provenance": damage})
    run("audit_table", monkeypatch, one, without)
    assert "(damage: told by 1 of 2 audits, and left out)" in capsys.readouterr().out
    Path("none.json").write_text("{}")
    for words, message in {
        ("nowhere.json",): "nowhere.json is no file; expected audit.json",
        ("none.json",): "none.json is no audit.json as FisherAudit writes it (KeyError('provenance'))",
        (__file__,): "is no audit.json as FisherAudit writes it",
        (one, same): "are of one run; a mean over audits is one over trainings",
        (one, fewer): "the audits differ in their samples, so that they do not compare: 32 and 64",
        (one, longer): "the audits differ in their epoch, so that they do not compare: 9 and null",
        (one, elsewhere): "the audits tell of damage to different tasks: 1, 2",
    }.items():
        with pytest.raises(SystemExit):
            run("audit_table", monkeypatch, *words)
        assert message in capsys.readouterr().err


def test_the_figures_at_single_timesteps_are_drawn_beside_the_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("second_to_first", "leading_share", "leading_error", "mean_error", "diagonal_error", "mu_itself")
    bands = {f"t = {t}": {name: figure(0.3) for name in names} for t in (700, 100)}
    bands["t = 700"]["second_to_first"]["known"] = False
    bands["t = 700"]["mu_with t = 100"] = bands["t = 100"]["mu_with t = 700"] = figure(0.8)
    audit = {"provenance": {"task": 5, "samples": 64}, "figures": {**bands, "all": {}}}
    audit["nonlinearity"] = {"t = 700": figure(0.01), "t = 100": figure(0.5)}
    Path("audit.json").write_text(json.dumps(audit))
    run("rank1_figures", monkeypatch, "audit.json", "--out", "pictures")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| 100 | 0.3 +- 0.1; published < 0.4 |")
    assert "(0.3 +- 0.1); published 0.022" in lines[3]
    assert {path.name for path in Path("pictures").iterdir()} == {
        f"{name}.png" for name in ("spectrum", "errors", "linearity", "means")
    }
    Path("audit.json").write_text(json.dumps({"figures": {"low": {}}}))
    with pytest.raises(SystemExit, match="expected one of single timesteps"):
        run("rank1_figures", monkeypatch, "audit.json")


def test_variants_are_told_a_row_a_band_and_what_is_there_is_not_run_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("audit_variants")
    calls: list[list[str]] = []

    def fitted(run: Path, words: list[str]) -> bool:
        run.mkdir(parents=True, exist_ok=True)
        (run / "finished").touch()
        calls.append(["fit", *words])
        return True

    def command_line(words: list[str], log: Path) -> bool:
        calls.append(list(words))
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        run = Path(options["ckpt_path"]).parents[1]
        task = Path(options["ckpt_path"]).stem
        file = run / options["trainer.callbacks.name"] / task / "audit.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"figures": {"low": {"v_itself": figure(0.9)}, "high": {}}}))
        return "half_width" not in str(run)

    monkeypatch.setattr(tool, "fitted", fitted)
    monkeypatch.setattr(tool, "command_line", command_line)
    words = ["--out", "runs", "--seeds", "0", "1", "--jobs", "1", "--variants", "32 samples", "five tasks"]
    for expected in (2 * 2 + 2 * 6, 2 * 2):  # a second time the fits are asked for, and no audit
        calls.clear()
        with pytest.raises(SystemExit) as exit_:
            run("audit_variants", monkeypatch, *words, "--data.root=PATH")
        assert exit_.value.code == 0
        assert len(calls) == expected
    assert all("--data.root=PATH" in call for call in calls)
    told = capsys.readouterr().out
    assert "| 32 samples | low |" in told
    assert "| five tasks, task 5 | low |  |  | 0.9 +- 0 |" in told
    with pytest.raises(SystemExit) as exit_:
        run(
            "audit_variants", monkeypatch, "--out", "runs", "--seeds", "0", "--variants", "half the width", "32 samples"
        )
    assert exit_.value.code == 1
    assert (folder / "runs" / "table.md").read_text().count("32 samples") == 2
