"""The job scripts, with a queue that only writes down what it is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "tools/slurm"


@pytest.fixture
def queue(tmp_path: Path) -> dict[str, str]:
    """An environment whose ``srun``, ``scontrol`` and ``python`` append their arguments to ``called``."""
    for name, then in (("srun", ""), ("scontrol", ""), ("python", "exec sleep ${SLEEP:-0}")):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/called\n{then}\n')
        command.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def called(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "called").read_text().splitlines()]


def test_a_fit_takes_the_jobs_nodes_and_goes_on_from_where_it_was(tmp_path: Path, queue: dict[str, str]) -> None:
    numbers = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    command = ["bash", str(SCRIPTS / "fit.sbatch"), "--run", "runs/first", "-c", "configs/base.yaml"]
    subprocess.run(command, check=True, env={**queue, **numbers})
    ((program, *words),) = called(tmp_path)
    assert program == "srun"
    assert words[:7] == [
        "--kill-on-bad-exit=1",
        "cl-diffusion",
        "fit",
        "--run",
        "runs/first",
        "-c",
        "configs/base.yaml",
    ]
    hardware = Path(words[words.index("-c", 7) + 1])
    assert hardware.name == "slurm.yaml"
    assert hardware.is_file()
    assert words[-3:] == ["--trainer.num_nodes=2", "--trainer.devices=4", "--ckpt_path=last"]


def sweep(queue: dict[str, str], position: int, **more: str) -> subprocess.Popen[bytes]:
    array = {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": str(position),
        "METHODS": "finetune rank1",
        "SEEDS": "3 4",
    }
    command = ["bash", str(SCRIPTS / "sweep.sbatch"), "digits", "--out", "runs/all"]
    return subprocess.Popen(command, env={**queue, **array, **more}, stderr=subprocess.PIPE)


def test_a_sweep_is_every_method_on_every_seed(tmp_path: Path, queue: dict[str, str]) -> None:
    for position in range(4):
        assert sweep(queue, position).wait() == 0
    cells = [(words[words.index("--methods") + 1], words[words.index("--seeds") + 1]) for words in called(tmp_path)]
    assert cells == [("finetune", "3"), ("finetune", "4"), ("rank1", "3"), ("rank1", "4")]
    beyond = sweep(queue, 4)
    _, said = beyond.communicate()
    assert beyond.returncode == 2
    assert b"--array holds 4, and there are 4 cells, from 0" in said


def test_a_sweep_that_is_warned_of_its_end_goes_back_into_the_queue(tmp_path: Path, queue: dict[str, str]) -> None:
    job = sweep(queue, 1, SLEEP="30")
    while not (tmp_path / "called").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=10) != 0
    assert called(tmp_path)[-1] == ["scontrol", "requeue", "7_1"]
