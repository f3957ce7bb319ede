"""A matrix of methods and seeds: run once, gone on with where it stopped, and told in one table."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from cl_diffusion.cli import main as command_line
from cl_diffusion.linalg import LowRank, Quadratic
from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.figures import draw_front
from cl_diffusion.report.run import Run
from tests.tiny import configuration

ROOT = Path(__file__).parents[1]


class DiesOnce(Callback):
    """Takes the process down in the third epoch, unless it has done so before."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2 and not self.marker.exists():
            self.marker.touch()
            os._exit(9)


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """Modules of the tool, by name, as it imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module


def run(tools: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The exit code, or the message."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    with pytest.raises(SystemExit) as exit_:
        tools("reproduce").main()
    return exit_.value.code


@pytest.mark.slow
def test_a_matrix_goes_on_where_it_stopped(
    tools: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presets = tools("presets")
    (folder / "method").mkdir()
    configuration(folder, strength=None).rename(folder / "base.yaml")
    (folder / "method" / "finetune.yaml").write_text((ROOT / "configs/method/finetune.yaml").read_text())
    rank1 = yaml.safe_load((ROOT / "configs/method/ewc_rank1.yaml").read_text())
    dying = {"class_path": "tests.test_reproduce.DiesOnce", "init_args": {"marker": str(folder / "died")}}
    rank1["trainer"]["callbacks+"].insert(0, dying)
    (folder / "method" / "ewc_rank1.yaml").write_text(yaml.safe_dump(rank1))
    monkeypatch.setattr(tools("cells"), "CONFIGS", folder)
    monkeypatch.setitem(presets.PRESETS, "tiny", presets.Preset(("base",), published={"distillation": (1.0, 2.0)}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = ["tiny", "--out", "out", "--methods", "finetune", "rank1", "--seeds", "4", "--jobs", "2"]

    assert run(tools, monkeypatch, *command) == 1
    output = capsys.readouterr()
    assert "finished finetune, seed 4" in output.out
    assert f"failed: rank1, seed 4; see {Path('out/tiny/rank1/seed_4.log')}" in output.err
    cells = {name: Path("out/tiny") / name / "seed_4" for name in ("finetune", "rank1")}
    assert not (cells["rank1"] / "finished").exists()
    written = (cells["finetune"] / "continual.csv").stat().st_mtime_ns

    assert run(tools, monkeypatch, *command) == 0
    assert "finetune" not in capsys.readouterr().out.split("|")[0]
    assert (cells["finetune"] / "continual.csv").stat().st_mtime_ns == written
    commands = [
        line for line in cells["rank1"].with_suffix(".log").read_text().splitlines() if "cl_diffusion.cli" in line
    ]
    assert ["--ckpt_path" in line for line in commands] == [False, True]
    assert all("--seed_everything=4" in line for line in commands)
    table = Path("out/tiny/table.md").read_text()
    assert "| rank1 | 1 |" in table
    assert "| distillation | 0 |  | 1 |  | 2 |" in table
    records = list(csv.DictReader(Path("out/tiny/table.csv").read_text().splitlines()))
    assert {(r["method"], r["figure"]) for r in records} >= {("rank1", "AFID"), ("finetune", "plasticity")}
    assert Path("out/tiny/front.png").stat().st_size > 1000

    monkeypatch.setattr(subprocess, "Popen", None)  # all is finished: nothing is started
    assert run(tools, monkeypatch, *command) == 0
    refused = run(tools, monkeypatch, *command, "--trainer.max_steps=1")
    assert "finetune, seed 4 was run with another configuration: --trainer.max_steps=1 (now)" in refused
    assert "name another --out" in refused
    before = (folder / "method" / "ewc_rank1.yaml").read_text()
    (folder / "method" / "ewc_rank1.yaml").write_text(before.replace("15000.0", "1.0"))
    refused = run(tools, monkeypatch, *command)
    assert "rank1, seed 4 was run with another configuration: the content of method/ewc_rank1; name another" in refused
    (folder / "method" / "ewc_rank1.yaml").write_text(f"# said anew\n{before}")
    (cells["rank1"] / "yardstick.json").write_text(
        '{"reference_classifier": "b", "held_out_accuracy": 1, "inception": false}'
    )
    assert "judged by 2 different reference classifiers" in run(tools, monkeypatch, *command)


def measured(agreement: list[list[float]], *, inception: bool = False, shift: float = 0.0) -> Run:
    """A run, of rows after each task, one figure a task seen; distances are 100 (1 - it), Inception's tenfold."""
    matrices = {
        "class_agreement": ContinualMatrix("class_agreement", True),
        "denoising_loss": ContinualMatrix("denoising_loss", False),
        "frechet_distance": ContinualMatrix("frechet_distance", False),
    }
    if inception:
        matrices["inception_distance"] = ContinualMatrix("inception_distance", False)
    for after, row in enumerate(agreement, 1):
        for task, value in enumerate(row, 1):
            matrices["class_agreement"].record(after, task, value + shift)
            matrices["denoising_loss"].record(after, task, 1 - value)
            matrices["frechet_distance"].record(after, task, 100 * (1 - value))
            if inception:
                matrices["inception_distance"].record(after, task, 1000 * (1 - value))
    yardstick = {"reference_classifier": "a", "held_out_accuracy": 0.9, "inception": inception}
    return Run(Path("run"), "run", {}, matrices, yardstick, [], {}, [], [], [], {})


KEPT, LOST = [[0.9], [0.8, 0.9], [0.6, 0.7, 0.5]], [[0.9], [0.4, 1.0], [0.1, 0.3, 0.8]]


def test_the_figures_are_those_of_the_matrix(tools: Any) -> None:
    table, presets = tools("methods_on_seeds").MethodsOnSeeds, tools("presets").PRESETS
    rows = {"finetune": {0: measured(LOST)}, "rank1": {0: measured(KEPT)}}
    found = table(rows, presets["digits"], "finetune")
    expected = {
        "AFID": 40.0,
        "forgetting": (30 + 20 + 0) / 3,
        "class agreement": 0.6,
        "retention": 0.65,
        "plasticity": 0.7,
    }
    assert {title: found.values("rank1", title)[0] for title in expected} == pytest.approx(expected)
    assert found.differences("rank1", "class agreement") == pytest.approx([0.2])
    assert found.differences("finetune", "class agreement") == []
    assert "own classifier, not FID" in found.markdown()
    errors = table(rows, presets["iewc"], "finetune")
    expected = {"old error": 0.35, "forgetting": 0.25, "new error": 0.5}
    assert {title: errors.values("rank1", title)[0] for title in expected} == pytest.approx(expected)


def test_means_are_over_seeds_and_differences_on_the_same_ones(tools: Any) -> None:
    table, presets = tools("methods_on_seeds").MethodsOnSeeds, tools("presets").PRESETS
    rows = {
        "finetune": {0: measured(LOST), 1: measured(LOST, shift=0.1)},
        "rank1": {seed: measured(KEPT, shift=shift) for seed, shift in enumerate((0.0, 0.2, 0.3))},
    }
    found = table(rows, presets["digits"], "finetune")
    assert found.differences("rank1", "class agreement") == pytest.approx([0.2, 0.3])
    (record,) = [r for r in found.records() if (r["method"], r["figure"]) == ("rank1", "retention")]
    assert record["mean"] == pytest.approx(0.65 + 0.5 / 3)
    assert record["standard_error"] == pytest.approx(0.15275 / 3**0.5, rel=1e-3)
    assert record["difference_standard_error"] == pytest.approx(0.05, rel=1e-6)
    assert record["seeds"] == 3


def test_features_are_never_mixed(tools: Any) -> None:
    table, presets = tools("methods_on_seeds").MethodsOnSeeds, tools("presets").PRESETS
    with_it, without = measured(KEPT, inception=True), measured(LOST)
    preset = presets["mnist"]
    both = table({"rank1": {0: with_it}, "finetune": {0: without}}, preset, "finetune")
    assert both.values("rank1", "AFID") == pytest.approx([40.0])
    assert "and not with published ones" in both.markdown()
    alone = table({"rank1": {0: with_it}}, preset, "finetune")
    assert alone.values("rank1", "AFID") == pytest.approx([400.0])
    assert "2048 Inception features (FID)" in alone.markdown()
    assert "| rank1 | 1 | 400 | 65.2 |" in alone.markdown()
    assert "| rank1+distillation | 0 |  | 7.6 |  | 0.6 |" in alone.markdown()
    swept = table({"distillation+rank1, strength 10000": {0: with_it}}, preset, "finetune").markdown()
    assert "| distillation+rank1, strength 10000 | 1 | 400 | 7.6 |" in swept
    assert "| rank1+distillation |" not in swept


def test_runs_of_different_lengths_are_not_compared(tools: Any) -> None:
    table, presets = tools("methods_on_seeds").MethodsOnSeeds, tools("presets").PRESETS
    rows = {"rank1": {0: measured(KEPT)}, "finetune": {0: measured(LOST[:2])}}
    with pytest.raises(ValueError, match="ended after \\[2, 3\\] tasks"):
        table(rows, presets["digits"], "finetune")


def test_a_run_that_has_measured_nothing_is_named(tools: Any) -> None:
    rows = {"rank1": {0: replace(measured(KEPT), matrices={}, folder=Path("rank1/seed_0"))}}
    with pytest.raises(ValueError, match="rank1/seed_0: no continual.csv"):
        tools("methods_on_seeds").MethodsOnSeeds(rows, tools("presets").PRESETS["digits"], "finetune")


def test_the_strengths_of_a_method_are_one_line_of_the_picture(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, drawn = tools("methods_on_seeds"), {}
    monkeypatch.setattr(tool, "draw_front", lambda *given: drawn.update(given[0]) or draw_front(*given))
    both = {seed: measured(LOST, shift=seed / 10) for seed in (0, 1)}
    rows = {"rank1, strength 1500": both, "finetune": {0: measured(KEPT)}, "rank1, strength 150": both}
    tool.draw(tool.MethodsOnSeeds(rows, tools("presets").PRESETS["digits"], "finetune"), tmp_path / "front.png", "$")
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert {method: [point.beside for point in of] for method, of in drawn.items()} == {
        "rank1": ["150", "1500"],
        "finetune": [""],
    }
    (x, x_error), (y, y_error), _ = drawn["rank1"][0]
    assert (x, x_error, y, y_error) == pytest.approx((0.95, 0.05, 0.25, 0.05))
    assert [half for _, half in drawn["finetune"][0][:2]] == [None, None]


def test_other_files_and_other_orders_are_other_cells(tools: Any, folder: Path) -> None:
    tool = tools("cells")
    cell, preset, one = tool.Cell("finetune", None, 0), tools("presets").Preset(("base",)), folder / "one.yaml"
    one.write_text("seed_everything: 1\n")
    words = ["-c", str(one), "--data.batch_size=4", "--data.batch_size=8"]
    marker = cell.folder(folder) / tool.FINISHED
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps(cell.identity(preset, words)))
    assert cell.finished(preset, words, folder)
    with pytest.raises(ValueError, match="another order of .* --data.batch_size=8 --data.batch_size=4"):
        cell.finished(preset, [*words[:2], *reversed(words[2:])], folder)
    one.write_text("seed_everything: 2\n")
    with pytest.raises(ValueError, match=r"the content of .*one.yaml"):
        cell.finished(preset, words, folder)


def test_an_argument_may_be_spelled_in_two_ways(tools: Any) -> None:
    joined = tools("reproduce")._joined(["--a", "1", "--b=2", "--c", "--d", "-3"])
    assert joined == [
        "--a=1",
        "--b=2",
        "--c",
        "--d",
        "-3",
    ]


def test_a_method_is_named_by_its_parts(tools: Any) -> None:
    presets = tools("presets")
    assert all((ROOT / "configs" / f"{file}.yaml").is_file() for file in presets.PARTS.values())
    assert presets.parts("kronecker+buffer") == ["buffer", "kronecker"]
    for wrong in ("rank2", "rank1+diagonal", "buffer+distillation", "joint+rank1", ""):
        with pytest.raises(ValueError, match="is none of finetune|is none of buffer|expected one of finetune"):
            presets.parts(wrong)


def test_what_makes_no_sense_is_refused_before_anything_runs(
    tools: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in {
        ("--methods", "rank2"): "--methods 'rank2'",
        ("--against", "buffer"): "--against 'buffer'; expected a row of the table",
        ("--jobs", "0"): "--jobs 0; expected at least 1",
    }.items():
        assert run(tools, monkeypatch, "digits", *words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_is_run_by_one_process_at_a_time_and_a_terminated_one_is_not_finished(
    tools: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process keeps the lock though the one that started it is gone."""
    preset = tools("presets").Preset(("base",))
    (folder / "method").mkdir()
    configuration(folder, strength=None, epochs_per_task=500).rename(folder / "base.yaml")
    (folder / "method" / "finetune.yaml").write_text("trainer:\n  callbacks+: []\n")
    monkeypatch.setattr(tools("cells"), "CONFIGS", folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make = tools("cells_in_processes").CellsInProcesses
    cell, matrix = tools("cells").Cell("finetune", None, 0), make(preset, [], Path("out"), 1)
    thread = threading.Thread(target=matrix.run, args=([cell],))
    thread.start()
    metrics = cell.folder(Path("out")) / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert make(preset, [], Path("out"), 1).run([cell]) == [cell]
    assert "finetune, seed 0 is being run by another process" in capsys.readouterr().out
    assert metrics.exists()
    for process in list(matrix.running):
        process.terminate()
    thread.join(60)
    assert "FAILED   finetune, seed 0" in capsys.readouterr().out
    assert not (cell.folder(Path("out")) / "finished").exists()


PUBLISHED = {
    ("mnist", "rank1+distillation"): ("DistilledDDPM", "half_sum", 15000.0, 0.0, False),
    ("cifar10_code", "rank1+distillation"): ("DistilledDDPM", "mean", 10000.0, 0.1, True),
    ("fashion_mnist_code", "diagonal"): ("DDPM", "mean", 10000.0, 0.1, None),
    ("iewc", "iewc_diagonal"): ("DDPM", "mean", 25.0, 0.0, None),
    ("digits", "masip"): ("DistilledDDPM", "mean", None, 0.0, False),
}


@pytest.mark.parametrize(("preset", "method"), PUBLISHED)
def test_a_cell_is_what_was_published(tools: Any, preset: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = tools("cells").Cell(method, None, 5).command(tools("presets").PRESETS[preset], [], Path("out"))
    with pytest.raises(SystemExit):
        command_line([*words, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    kind, reduction, strength, dropout, noise_of_replay = PUBLISHED[preset, method]
    model, callbacks = config["model"]["init_args"], config["trainer"]["callbacks"]
    assert config["model"]["class_path"] == f"cl_diffusion.{kind}"
    assert (model["reduction"], model["network"]["init_args"]["dropout"]) == (reduction, dropout)
    assert model.get("noise_of_replay") == noise_of_replay
    penalties = [callback["init_args"]["strength"] for callback in callbacks if callback["class_path"].endswith("EWC")]
    assert penalties == ([] if strength is None else [strength])
    assert any(c["class_path"].endswith("ResetOptimizer") for c in callbacks) == preset.endswith("_code")
    if preset == "iewc":
        assert model["schedule"]["class_path"].endswith("cosine")
        assert config["data"]["init_args"]["training_samples"] == 4096
    elif preset == "digits":
        assert model["balance"] == "balanced"
        assert config["data"]["init_args"]["replay"]["init_args"]["sampler"]["init_args"]["steps"] == 2
    else:
        assert model["network"]["init_args"]["block_out_channels"] == [128, 256, 256, 256]
        assert model["network"]["init_args"]["in_channels"] == (3 if preset.startswith("cifar") else 1)
        assert json.dumps(config).count('"images_per_class": 5000') == (method != "diagonal")


def test_how_far_weights_moved_is_told_whole_and_along_what_was_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held along ``(0, 1, .., 9)``, the later coordinates moved less; fine-tuning moved all of them by 2."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    theta, u, slowed = torch.arange(10.0), torch.arange(10.0), torch.arange(10.0, 0.0, -1) / 5
    penalty = Quadratic(LowRank({"w": u[None]}, torch.ones(1)), {"w": theta})
    for method, moved, terms in (("finetune", 2 * torch.ones(10), []), ("rank1", slowed, [penalty.state()])):
        run = folder / "directions" / method / "seed_0"
        (run / "checkpoints").mkdir(parents=True)
        (run / "finished").touch()
        entries = [f"class_agreement,{after},{task},0.5" for after in (9, 10) for task in range(1, after + 1)]
        (run / "continual.csv").write_text("\n".join(["metric,after,task,value", *entries]))
        (run / "yardstick.json").write_text("{}")
        for task, weights in ((9, theta), (10, theta + moved)):  # of two digits: not to be put in order as text
            checkpoint = {"state_dict": {"w": weights}, "callbacks": {"EWC": {"terms": terms}, "other": {}}}
            torch.save(checkpoint, run / "checkpoints" / f"after_task_{task}.ckpt")
    tool = importlib.import_module("moved")
    monkeypatch.setattr(sys, "argv", ["moved.py", "directions"])
    tool.main()
    told = capsys.readouterr().out
    length, along, beside = slowed.norm(), slowed @ u / u.norm(), 2 * u.sum() / u.norm()
    assert f"| finetune | 1 | {40**0.5:.3g} |  |  |  |  |  | 0.5 |" in told
    assert f"| rank1 | 1 | {length:.3g} | {along:.3g} | {beside:.3g} | 1 | 0.6 | 0.1 | 0.5 |" in told
    monkeypatch.setattr(sys, "argv", ["moved.py", "nothing"])
    with pytest.raises(SystemExit, match="nothing has no finished runs"):
        tool.main()
