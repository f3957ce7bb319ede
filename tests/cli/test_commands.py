from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cl_diffusion.cli import command_line, main
from cl_diffusion.cli.run_folder import LAST, claim
from tests.tiny import configuration


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit of two tasks."""
    folder = tmp_path_factory.mktemp("finished")
    main(["fit", "-c", str(configuration(folder)), "--run", str(folder / "run")])
    return folder / "run"


def test_fit_leaves_everything_in_its_folder(run: Path) -> None:
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert found == {
        "config.yaml",
        "continual.csv",
        "yardstick.json",
        "metrics.csv",
        "run.json",
        "checkpoints/after_task_1.ckpt",
        "checkpoints/after_task_2.ckpt",
        "checkpoints/last.ckpt",
        "samples/after_task_1.png",
        "samples/after_task_2.png",
    }
    entries = [(row["metric"], row["after"], row["task"]) for row in rows(run / "continual.csv")]
    metrics = ("class_agreement", "denoising_loss", "frechet_distance")
    assert sorted(entries) == sorted((m, a, t) for m in metrics for a, t in (("1", "1"), ("2", "1"), ("2", "2")))


def test_the_record_says_what_was_run_by_what_and_how_it_ended(run: Path) -> None:
    (session,) = json.loads((run / "run.json").read_text())["sessions"]
    assert session["command"].startswith("cl-diffusion fit ")
    assert session["outcome"] == "finished"
    assert session["versions"]["torch"] == session["packages"]["torch"]
    assert session["started"] <= session["ended"]


def test_the_log_holds_losses_by_task_and_the_noise_of_the_fisher_at_every_boundary(run: Path) -> None:
    logged = rows(run / "metrics.csv")
    for task in (1, 2):
        assert [row for row in logged if row["ewc/task"] == str(float(task)) and row["ewc/split_half_cosine"]]
        assert [row for row in logged if row[f"val_loss/task_{task}"]]
    assert {"ewc/mean_gradient_squared_unbiased", "ewc/covariance_trace_over_n"} <= logged[0].keys()


def test_the_checkpoint_holds_the_anchors_and_loads_without_pickle(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "after_task_1.ckpt", weights_only=True)
    (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("EWC")]
    record = state["terms"][0]["provenance"]["record"][0]
    assert (record["task"], record["samples"], record["keyed"]) == (1, 29, True)
    identity = state["terms"][0]["provenance"]["identity"]
    assert identity["loss_reduction"] == "mean over elements"
    assert identity["timestep_law"] == "uniform over t = 0..999 of 0..999"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_needs_nothing_but_the_checkpoint(
    command: str, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([command, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    printed = capsys.readouterr().out
    name = {"validate": "val_loss", "test": "test_loss"}[command]
    assert f"{name}/task_1" in printed
    assert f"{name}/task_2" in printed
    assert not list(folder.iterdir())


@pytest.mark.parametrize("by", ["word", "file"])
def test_another_sampler_than_the_checkpoints_has_its_own_defaults(
    by: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint names a DDIM sampler with all its arguments; its ``eta`` of 0 is not that of others."""
    (tmp_path / "sampler.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"sampler": {"class_path": "HutchinsonSampler"}}}})
    )
    words = ["--model.sampler", "HutchinsonSampler"] if by == "word" else ["-c", str(tmp_path / "sampler.yaml")]
    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *words, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["sampler"]["init_args"]["eta"] == 1.0
    assert model["sampler"]["init_args"]["steps"] == 25
    assert model["network"]["init_args"]["sample_size"] == 8
    with pytest.raises(SystemExit):
        main(
            [
                "validate",
                "--ckpt_path",
                str(run / "checkpoints" / "last.ckpt"),
                "--model.sampler.steps=7",
                "--print_config",
            ]
        )
    sampler = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["sampler"]
    assert sampler["class_path"].endswith("DDIMSampler")
    assert sampler["init_args"]["steps"] == 7


def test_predict_draws_the_classes_asked_for_and_never_writes_over_an_earlier_picture(run: Path, folder: Path) -> None:
    arguments = ["predict", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--data.predict_classes=[3, 1]"]
    main(arguments)
    main(arguments)
    first, second = (load_file(run / name / "images.safetensors") for name in ("predict_0", "predict_1"))
    assert first["labels"].tolist() == [3, 3, 1, 1]
    assert first["images"].shape == (4, 1, 8, 8)
    assert torch.equal(first["images"], second["images"])
    assert (run / "predict_1" / "images.png").is_file()


def fit(config: Path, run: Path, *more: str) -> None:
    main(["fit", "-c", str(config), "--run", str(run), *more])


def test_a_second_fit_into_the_folder_is_refused_and_nothing_is_lost(run: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds files; resume it with --ckpt_path .*last.ckpt"):
        fit(configuration(folder), run)
    with pytest.raises(ValueError, match="init_args.strength was 10.0 and is now 11.0"):
        fit(configuration(folder, strength=11.0), run, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="run='mine' already holds files"):
        fit(configuration(folder), Path("mine"))
    with pytest.raises(ValueError, match="ckpt_path='elsewhere.ckpt' is not a file"):
        fit(configuration(folder), Path("mine"), "--ckpt_path", "elsewhere.ckpt")
    torch.save({"state_dict": {}}, "elsewhere.ckpt")
    with pytest.raises(ValueError, match="no config.yaml"):
        fit(configuration(folder), Path("mine"), "--ckpt_path", "elsewhere.ckpt")


def interrupted(run: Path, folder: Path) -> Path:
    """The finished run as it lay there after its first task."""
    copy = folder / "interrupted"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "after_task_2.ckpt").unlink()
    shutil.copyfile(copy / "checkpoints" / "after_task_1.ckpt", copy / "checkpoints" / "last.ckpt")
    (copy / "samples" / "after_task_2.png").unlink()
    return copy


def test_resuming_with_the_same_configuration_appends(run: Path, folder: Path) -> None:
    copy = interrupted(run, folder)
    metrics = rows(copy / "metrics.csv")
    last = copy / "checkpoints" / "last.ckpt"
    main(["fit", "-c", str(copy / "config.yaml"), "--run", str(copy), "--ckpt_path", str(last)])
    resumed = rows(copy / "metrics.csv")
    assert resumed[: len(metrics)] == metrics
    assert len(resumed) > len(metrics)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {
        "after_task_1.ckpt",
        "after_task_2.ckpt",
        "last.ckpt",
    }
    before, after = ([r for r in rows(path / "continual.csv") if r["after"] == "1"] for path in (run, copy))
    assert before == after
    assert len(rows(copy / "continual.csv")) == 9


def test_an_older_checkpoint_may_branch_off_but_not_overwrite(run: Path, folder: Path) -> None:
    older = ["--ckpt_path", str(run / "checkpoints" / "after_task_1.ckpt")]
    with pytest.raises(ValueError, match="after_task_1.ckpt' is not the newest checkpoint .*give .*last.ckpt"):
        fit(run / "config.yaml", run, *older)
    fit(run / "config.yaml", folder / "branch", *older)
    assert len(rows(folder / "branch" / "continual.csv")) == 9


def test_last_is_wherever_the_run_is(run: Path, folder: Path) -> None:
    """A new folder, one that was left before its first checkpoint, one that was left within, one that is through."""
    config = configuration(folder)
    fit(config, folder / "new", "--ckpt_path", "last")
    early = folder / "early"
    shutil.copytree(folder / "new", early, ignore=lambda _, names: set(names) & {"checkpoints", "continual.csv"})
    copy = interrupted(run, folder)
    for left in (early, copy, copy):
        fit(config, left, "--ckpt_path", "last")
        assert (left / "continual.csv").read_text() == (run / "continual.csv").read_text()
    with pytest.raises(ValueError, match="init_args.strength was 10.0 and is now 11.0"):
        fit(configuration(folder, strength=11.0), copy, "--ckpt_path", "last")


def spoil(checkpoint: Path, how: str) -> None:
    content = bytearray(checkpoint.read_bytes())
    if how == "cut off":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "one bit"])
def test_a_damaged_checkpoint_is_refused_with_the_name_of_one_that_is_whole(how: str, run: Path, folder: Path) -> None:
    copy = interrupted(run, folder)
    last, before = copy / "checkpoints/last.ckpt", copy / "checkpoints/after_task_1.ckpt"
    spoil(last, how)
    refusal = f"ckpt_path='{last}' is damaged .*: go on from {before}, the newest that is whole"
    with pytest.raises(ValueError, match=refusal):
        fit(copy / "config.yaml", copy, "--ckpt_path", str(last))
    with pytest.raises(ValueError, match=refusal):
        main(["validate", "--ckpt_path", str(last)])
    with pytest.warns(UserWarning, match="last.ckpt is damaged .* and passed over"):
        fit(copy / "config.yaml", copy, "--ckpt_path", "last")
    assert (copy / "continual.csv").read_text() == (run / "continual.csv").read_text()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again(run: Path, folder: Path) -> None:
    copy = interrupted(run, folder)
    for checkpoint in (copy / "checkpoints").iterdir():
        spoil(checkpoint, "cut off")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="none of the 2 checkpoints of run=.* is whole"):
        fit(copy / "config.yaml", copy, "--ckpt_path", "last")
    with pytest.raises(ValueError, match="is damaged .*: there is no other in its folder that is whole"):
        fit(copy / "config.yaml", copy, "--ckpt_path", str(copy / "checkpoints/last.ckpt"))
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(epoch: int, folder: Path) -> None:
    """From within a task, and from a task's end; dropout included, which draws from the global generator."""
    path = configuration(folder, epochs_per_task=3)
    config = json.loads(path.read_text())
    config["model"]["init_args"]["network"]["init_args"]["dropout"] = 0.2
    saving = {"dirpath": str(folder / "kept"), "filename": "{epoch}", "save_top_k": -1, "save_on_train_epoch_end": True}
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving}
    config["trainer"]["callbacks"].append(checkpoint)
    path.write_text(json.dumps(config))
    fit(path, folder / "whole")
    fit(path, folder / "branch", "--ckpt_path", str(folder / "kept" / f"epoch={epoch}.ckpt"))
    ends = [torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "branch")]
    for mine, theirs in zip(*(end["state_dict"].values() for end in ends), strict=True):
        assert torch.equal(mine, theirs)
    assert (folder / "whole" / "continual.csv").read_text() == (folder / "branch" / "continual.csv").read_text()


def test_a_fit_that_was_refused_leaves_its_folder_free(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_shape=\(1, 9, 9\)"):
        fit(configuration(folder, image_size=9), folder / "run")
    fit(configuration(folder), folder / "run")


def test_a_strength_of_zero_is_the_run_without_it_bit_for_bit(folder: Path) -> None:
    weights = []
    for strength in (None, 0.0, 10.0):
        run = folder / f"strength_{strength}"
        fit(configuration(folder, strength=strength), run)
        weights.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    without, zero, some = weights
    assert all(torch.equal(zero[name], tensor) for name, tensor in without.items())
    assert not all(torch.equal(some[name], tensor) for name, tensor in without.items())


def test_two_processes_fit_one_stream_and_agree(folder: Path) -> None:
    config = configuration(folder, batch_size=8, trainer={"devices": 2, "strategy": "ddp"})
    command = [str(Path(sys.executable).parent / "cl-diffusion"), "fit", "-c", str(config), "--run", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=240, env=environment, capture_output=True)
    assert len(rows(folder / "two" / "continual.csv")) == 9
    checkpoint = torch.load(folder / "two" / "checkpoints" / "after_task_1.ckpt", weights_only=True)
    (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("EWC")]
    assert state["terms"][0]["provenance"]["record"][0]["samples"] == 29


def test_the_epochs_are_the_streams_and_another_number_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_epochs=7 .*the stream takes 4"):
        fit(configuration(folder), folder / "run", "--trainer.max_epochs", "7")
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs=0"):
        fit(configuration(folder), folder / "other", "--trainer.reload_dataloaders_every_n_epochs", "0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": [[0, 1], [1, 2, 3]]}, r"names \[1\] more than once"),
        ({"tasks": [[0, 1], [2]]}, r"leaves \[3\] in no task"),
        ({"tasks": [[0, 1, 2, 3], []]}, "at least one class in every task"),
        ({"dataset": "mnist", "root": "nowhere"}, "root='nowhere'"),
    ],
)
def test_bad_data_is_refused_before_training(data: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(configuration(folder, **data), folder / "run")
    assert not any(path.is_file() for path in (folder / "run").rglob("*"))


def test_the_console_command_ends_with_the_message_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(folder, strength=-1.0)
    monkeypatch.setattr(sys, "argv", ["cl-diffusion", "fit", "-c", str(config), "--run", "run"])
    with pytest.raises(SystemExit) as exit_:
        command_line()
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert "cl-diffusion: error: strength=-1.0; expected a finite number >= 0" in printed
    assert "Traceback" not in printed


def test_a_bad_option_is_one_message_and_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        fit(configuration(folder), folder / "run", "--data.dataset", "emnist")
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "emnist" in said
    assert said.startswith("usage: cl-diffusion fit -c FILE")
    assert "--trainer." not in said  # hundreds of arguments are for --help


def test_last_without_a_checkpoint_says_that_it_starts_from_the_beginning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        claim(folder / "nowhere", "a: 1", None, LAST)
    assert "nowhere' holds no checkpoint: it starts from the beginning" in caplog.text


def test_a_checkpoint_that_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="ckpt_path='nowhere.ckpt' is not a file"):
        main(["validate", "--ckpt_path", "nowhere.ckpt"])
    Path("no.ckpt").write_text("not one")
    with pytest.raises(ValueError, match="ckpt_path='no.ckpt' is damaged .File is not a zip file"):
        main(["validate", "--ckpt_path", "no.ckpt"])
    torch.save({"state_dict": {}}, "foreign.ckpt")
    with pytest.raises(ValueError, match="ckpt_path='foreign.ckpt' holds no configuration"):
        main(["test", "--ckpt_path=foreign.ckpt"])
