"""Every shipped configuration opens with its own command, and that command is one the parser takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from cl_diffusion.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def command(path: Path) -> list[str]:
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#     ")]
    words = shlex.split(next(line for line in lines if line.startswith("cl-diffusion ")))
    return [word.replace("PATH", "data") for word in words[1:]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_command_of_a_configuration_parses(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = command(path)
    assert path.relative_to(ROOT).as_posix() in words
    if "--ckpt_path" in words and path.parent.name == "diagnostics":  # of a checkpoint, whose configuration comes first
        position = words.index("--ckpt_path")
        parts = ("base", "data/digits", "model/unet_8x8")
        run = [word for part in parts for word in ("-c", f"configs/{part}.yaml")]
        words = [words[0], *run, *words[1:position], *words[position + 2 :]]
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--print_config"])
    assert exit_.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    if path.name == "variance_head.yaml":
        assert resolved["model"]["class_path"] == "cl_diffusion.VarianceHeadModule"
        return
    if path.parent.name == "plasticity" and not path.stem.endswith(("_counting", "_diffusion")):
        assert resolved["model"]["class_path"] == "cl_diffusion.modules.OnlineClassifier"
        return
    assert resolved["model"]["class_path"] in ("cl_diffusion.DDPM", "cl_diffusion.DistilledDDPM")
    assert resolved["trainer"]["callbacks"]


def resolved(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    config: dict[str, object] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_the_quickstart_is_the_composition_that_it_says_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    parts = ["base", "data/digits", "model/unet_8x8", "method/ewc_rank1", "hardware/cpu"]
    shorter = ["--data.epochs_per_task", "60", "--trainer.check_val_every_n_epoch", "60"]
    composed = resolved(["fit", *(w for part in parts for w in ("-c", f"configs/{part}.yaml")), *shorter], capsys)
    quickstart = resolved(["fit", "-c", "configs/quickstart.yaml"], capsys)
    assert {**composed, "run": None} == {**quickstart, "run": None}
