"""Every command of the pages runs in a clone with cut configurations, after those that it builds on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from cl_diffusion.cli import main
from tests.clone import CHECKED_ONLY, CUT, Clone, entry
from tests.pages import BLOCKS, ROOT, Block

COMMANDS = [block for block in BLOCKS if block.kind == "commands"]
FITTED = ("cl-diffusion", "python")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One for all, as a reader would have it."""
    return Clone(tmp_path_factory.mktemp("clone"))


def runnable(block: Block) -> bool:
    return any(words[0] in FITTED for words in block.commands)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in COMMANDS if runnable(b)], ids=lambda block: block.name)
def test_the_commands_of_a_block_run(block: Block, clone: Clone) -> None:
    clone.run([words for words in block.commands if words[0] in FITTED])


def test_what_is_told_of_tools_is_of_commands_that_the_pages_have() -> None:
    tools = [words for block in COMMANDS for words in block.commands if words[0] == "python"]
    for table in (CUT, CHECKED_ONLY):
        assert {entry(words, table) for words in tools} - {None} == set(table)


@pytest.mark.parametrize(
    "words", [words for block in COMMANDS for words in block.commands if words[0] not in FITTED], ids=" ".join
)
def test_the_other_commands_are_what_this_project_has(words: list[str], tmp_path: Path) -> None:
    """Installation and checks are those of CI, which runs them; a job script starts its program."""
    said = " ".join(words)
    if words[0] == "sbatch":
        started = job([word for word in words[1:] if word != "..."], tmp_path)
        assert started[:2] == ["--kill-on-bad-exit=1", "cl-diffusion"]
        assert started[2 : 1 + len(words) - 1] == ["fit", *(word for word in words[2:] if word != "...")]
    elif words[0] == "pip":
        extras = (ROOT / "pyproject.toml").read_text()
        assert words[:3] == ["pip", "install", "-e"]
        assert words[3] == "." or f"\n{words[3].removeprefix('.[').removesuffix(']')} = [" in extras
    elif words[0] == "pre-commit":
        assert yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    elif said.startswith("pytest -m slow tests/"):
        assert (ROOT / words[-1]).is_file()
    else:
        assert said in (ROOT / ".ci/run").read_text().splitlines()


def job(words: list[str], folder: Path) -> list[str]:
    """What a job script starts on its nodes."""
    srun = folder / "srun"
    srun.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/started\n')
    srun.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    numbers = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    subprocess.run(["bash", *words], check=True, cwd=ROOT, env={**environment, **numbers})
    return (folder / "started").read_text().splitlines()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "arguments"], ids=lambda block: block.name)
def test_arguments_can_be_appended_to_a_fit(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", "configs/quickstart.yaml", *block.text.split(), "--print_config"])
    assert exit_.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["trainer"]["callbacks"][-1]["class_path"] == block.text.split()[1]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "yaml"], ids=lambda block: block.name)
def test_what_a_page_configures_is_taken_as_an_argument_of_ewc(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    said = yaml.safe_load(block.text)
    ewc = {"class_path": "cl_diffusion.callbacks.EWC", "init_args": {**said, "strength": 1.0}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [ewc]}}))
    parts = ("base", "data/digits", "model/unet_8x8")
    files = [word for part in parts for word in ("-c", f"configs/{part}.yaml")]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *files, "-c", str(tmp_path / "own.yaml"), "--print_config"])
    assert exit_.value.code == 0
    fisher = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][-1]["init_args"]["fisher"]
    assert fisher["class_path"] == said["fisher"]["class_path"]
    assert fisher["init_args"]["bands"]["init_args"]["bands"][2] == {"name": "high", "low": 2.0, "high": float("inf")}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "folders"], ids=lambda block: block.name)
def test_the_folders_of_the_layout_are_there(block: Block) -> None:
    parents: list[tuple[int, Path]] = [(-1, ROOT)]
    for line in block.text.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        if not name.endswith("/"):
            continue
        while parents[-1][0] >= depth:
            parents.pop()
        parents.append((depth, parents[-1][1] / name))
        assert parents[-1][1].is_dir(), parents[-1][1]
