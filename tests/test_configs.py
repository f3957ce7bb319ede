"""Every shipped configuration opens with its own command, which the parser takes, and which runs when it is cut."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from cl_diffusion.cli import main
from tests.clone import Clone

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ELSEWHERE = {
    "method": "tests/test_methods_in_processes.py fits every one, on one process and on several",
    "replay": "tests/test_methods_in_processes.py fits every one, on one process and on several",
    "ddp.yaml": "tests/test_methods_in_processes.py has several processes",
    "fsdp.yaml": "tests/cli/test_sharded.py has several processes",
    "slurm.yaml": "tests/test_slurm.py: a job is needed",
    "cifar10.yaml": "torchvision checks the digest of its archive; tests/data/test_sources.py reads one",
}
"""What is not run here, and why."""
MORE = {
    "image_folder.yaml": [
        *("--model.network.init_args.num_class_embeds", "4", "--model.network.init_args.in_channels", "3"),
        *("--model.network.init_args.out_channels", "3"),
    ],
}
"""What the comment of a file tells its reader to add."""
RUN = [path for path in CONFIGS if path.name not in ELSEWHERE and path.parent.name not in ELSEWHERE]


def written(path: Path) -> list[str]:
    """The words of the command in a file's comment."""
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#     ")]
    return shlex.split(next(line for line in lines if line.startswith("cl-diffusion ")))[1:]


def command(path: Path) -> list[str]:
    return [word.replace("PATH", "data") for word in written(path)]


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


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Of cut configurations; a run that another starts from is made by the command of its own file."""
    return Clone(tmp_path_factory.mktemp("clone"), more=[["cl-diffusion", *written(path)] for path in CONFIGS])


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_command_of_a_configuration_runs_for_a_step_a_task(path: Path, clone: Clone) -> None:
    words = [word.replace("PATH", "FOLDERS") if path.name in MORE else word for word in written(path)]
    if words[0] == "fit":
        run = f"one/{path.parent.name}_{path.stem}"
        words = [*words, *MORE.get(path.name, []), "--run", run]
        clone.run([["cl-diffusion", *words]])
        assert (clone.folder / run / "config.yaml").is_file()
    else:
        clone.run([["cl-diffusion", *words]])


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
