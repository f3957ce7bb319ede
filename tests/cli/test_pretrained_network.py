"""A fit from the command line that starts from a diffusers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cl_diffusion import DDPM
from cl_diffusion.cli import main
from cl_diffusion.modules import export_pipeline, import_pipeline, pretrained_network
from tests.tiny import configuration, unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


def start_from(folder: Path, network: Path) -> Path:
    """A configuration whose network comes from a folder, and whose learning rate is 0."""
    path = configuration(folder, strength=None)
    config = json.loads(path.read_text())
    arguments = config["model"]["init_args"]
    arguments["network"] = {
        "class_path": "cl_diffusion.modules.pretrained_network",
        "init_args": {"folder": str(network)},
    }
    arguments["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    config["trainer"]["callbacks"] = [{"class_path": "cl_diffusion.callbacks.TaskCheckpoint"}]
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A finished run, the weights that it started from, and its configuration; the folder of these is gone."""
    folder = tmp_path_factory.mktemp("pretrained")
    network: Any = unet(dropout=0.1)
    network.save_pretrained(folder / "network")
    config = start_from(folder, folder / "network")
    main(["fit", "-c", str(config), "--run", str(folder / "run")])
    weights = load_file(folder / "network" / WEIGHTS)
    (folder / "network").rename(folder / "away")
    return folder / "run", weights, config


def test_a_fit_starts_from_the_weights_of_the_folder(started: tuple[Path, dict[str, Any], Path]) -> None:
    run, weights, _ = started
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("denoiser.network.") for name in state} == weights.keys()
    assert all(torch.equal(state[f"denoiser.network.{name}"], value) for name, value in weights.items())


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_its_checkpoint_needs_the_folder_no_more(command: str, started: tuple[Path, dict[str, Any], Path]) -> None:
    run, _, _ = started
    main([command, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])


def test_a_fit_that_is_resumed_goes_on_from_its_checkpoint(started: tuple[Path, dict[str, Any], Path]) -> None:
    """The folder is there, of other weights: those of the checkpoint count."""
    run, weights, config = started
    other: Any = unet(dropout=0.1)
    other.save_pretrained(run.parent / "network")
    try:
        (run / "checkpoints" / "last.ckpt").unlink()
        (run / "checkpoints" / "after_task_2.ckpt").unlink()
        main(["fit", "-c", str(config), "--run", str(run), "--ckpt_path", "last"])
    finally:
        shutil.rmtree(run.parent / "network")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"denoiser.network.{name}"], value) for name, value in weights.items())


def test_a_checkpoint_of_the_command_line_becomes_a_pipeline(
    started: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    run, weights, _ = started
    module = DDPM.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True)
    with pytest.warns(UserWarning, match="no labels"):
        export_pipeline(module, tmp_path / "pipeline")
    found = import_pipeline(tmp_path / "pipeline")
    assert found.image_shape == (1, 8, 8)
    assert all(torch.equal(found.denoiser.network.state_dict()[name], value) for name, value in weights.items())


def test_the_network_is_in_training_mode_wherever_it_lies_in_the_folder(tmp_path: Path) -> None:
    network: Any = unet(dropout=0.1)
    network.save_pretrained(tmp_path / "unet")
    for folder in (tmp_path, tmp_path / "unet"):
        assert pretrained_network(str(folder)).training
