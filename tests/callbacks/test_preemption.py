"""A fit that is asked to stop writes where it is, and resumed from there it is the uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from cl_diffusion.callbacks import EWC, Preemption, TaskCheckpoint
from cl_diffusion.fisher import DiagonalFisher
from tests.callbacks.stranger import Regression, trainer, weights
from tests.callbacks.test_resume import Resumable

EPOCHS, BATCHES = 6, 4


class Signalled(Regression):
    """Gets a signal in the midst of a step."""

    def __init__(self, step: int | None = None, name: str = "SIGTERM", rank: int = 0) -> None:
        super().__init__(torch.optim.Adam)
        self.step, self.name, self.rank, self.taken = step, name, rank, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.taken == self.step and self.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.name])
        self.taken += 1
        return super().training_step(batch, batch_idx)


def fit(model: Regression, folder: Path, *more: Callback, ckpt_path: Path | None = None, **options: Any) -> EWC:
    ewc = EWC(DiagonalFisher(), 2.0, epochs_per_task=2)
    saving = TaskCheckpoint(str(folder), epochs_per_task=2)
    callbacks = [Preemption(dirpath=str(folder)), ewc, saving, *more]
    fitting = trainer(*callbacks, max_epochs=EPOCHS, enable_checkpointing=True, **options)
    fitting.fit(model, Resumable(), ckpt_path=ckpt_path)
    return ewc


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 2, 3, 7, 13, 21])
def test_stopped_within_a_step_it_goes_on_as_if_it_had_not(step: int, accumulated: int, tmp_path: Path) -> None:
    """Within an epoch, in its last batch, on a boundary; and between batches that accumulate, where it has to wait."""
    options = {"accumulate_grad_batches": accumulated}
    whole = Regression(torch.optim.Adam)
    remembered = fit(whole, tmp_path / "whole", **options)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(Signalled(step), tmp_path / "stopped", **options)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    last = tmp_path / "stopped/last.ckpt"
    batches = torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert step < batches <= step // BATCHES * BATCHES + BATCHES
    resumed = Regression(torch.optim.Adam)
    again = fit(resumed, tmp_path / "resumed", ckpt_path=last, **options)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    for mine, theirs in zip(remembered.terms, again.terms, strict=True):
        assert torch.equal(mine.operator.trace(), theirs.operator.trace())


def test_a_fit_that_is_through_has_nothing_to_stop(tmp_path: Path) -> None:
    model = Signalled(EPOCHS * BATCHES - 1)
    fit(model, tmp_path)
    assert model.taken == EPOCHS * BATCHES


@pytest.mark.parametrize(
    ("name", "array", "job"),
    [
        ("SIGUSR1", {}, "7"),
        ("SIGTERM", {}, None),
        ("SIGUSR1", {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_where_asked(
    name: str, array: dict[str, str], job: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\ntest -s {tmp_path}/last.ckpt\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    for variable, value in {"SLURM_JOB_ID": "7", **array}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit):
        fit(Signalled(2, name), tmp_path)
    called = tmp_path / "called"
    assert (called.read_text().split() if called.exists() else None) == (None if job is None else ["requeue", job])


def test_a_queue_that_is_not_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.warns(UserWarning, match="the job 7 is not put back into the queue"), pytest.raises(SystemExit) as end:
        fit(Signalled(2, "SIGUSR1"), tmp_path)
    assert end.value.code == 128 + signal.SIGUSR1


GRACE = """
import os, signal, sys, time
from cl_diffusion.callbacks import Preemption
from tests.callbacks.stranger import Regression, loader, trainer
class Long(Regression):
    def on_train_epoch_end(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
trainer(Preemption(grace_seconds=0.2, dirpath=sys.argv[1]), enable_checkpointing=True).fit(Long(), loader(0))
"""


def test_a_pass_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", GRACE, str(tmp_path)], timeout=50, capture_output=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_one_process_that_is_asked_stops_all(tmp_path: Path) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("cannot fork once CUDA is initialised")
    with pytest.raises(BaseException, match=r"exit code|terminated|143"):
        fit(Signalled(5, rank=1), tmp_path, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    batches = torch.load(tmp_path / "last.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert batches["total"]["ready"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": ["SIGKILL"]}, r"\['SIGKILL'\] cannot be handled"),
        ({"signals": ["TERM"]}, r"\['TERM'\] cannot be handled; expected names such as 'SIGTERM'"),
        ({"signals": ["SIGTERM"], "requeue": ["SIGUSR1"]}, "are not among signals"),
        ({"grace_seconds": -1}, "grace_seconds=-1; expected a number >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preemption(**arguments)


class Killed(Exception):
    """Where a process would have been killed."""


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_killed_while_it_writes_there_is_a_whole_checkpoint(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the bytes, amid them, and when they lie there without their name."""
    fit(Regression(torch.optim.Adam), tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()

    def cut(self: Any, path: Any, *_: Any, **__: Any) -> None:
        if moment != "before":
            Path(path).write_bytes(before[:500] if moment == "within" else before)
        raise Killed

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", cut)
    with pytest.raises(Killed):
        fit(Regression(torch.optim.Adam), tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert (
        not {path.name for path in tmp_path.glob("*.ckpt")}
        - {f"after_task_{k}.ckpt" for k in (1, 2, 3)}
        - {"last.ckpt"}
    )


@pytest.mark.parametrize("accumulated", [1, 3])
def test_checkpoints_every_few_steps_are_of_steps_that_can_be_resumed(accumulated: int, tmp_path: Path) -> None:
    kept: list[int] = []

    class Keeping(TaskCheckpoint):
        def save(self, trainer: Any, name: str = "last.ckpt") -> None:
            progress = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            kept.append(progress)
            super().save(trainer, f"{progress}.ckpt")

    def run(*callbacks: Callback, **options: Any) -> list[Tensor]:
        model = Regression(torch.optim.Adam)
        saving = any(isinstance(callback, TaskCheckpoint) for callback in callbacks)
        options_ = {"accumulate_grad_batches": accumulated, "enable_checkpointing": saving}
        fitting = trainer(*callbacks, max_epochs=EPOCHS, **options_)
        fitting.fit(model, Resumable(), **options)
        return weights(model)

    whole = run(Keeping(str(tmp_path), every_n_steps=2, epochs_per_task=100))
    within = [batches for batches in kept if batches % BATCHES]
    assert within == {1: [2, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23], 3: [7, 11, 15, 19, 23]}[accumulated]
    for batches in within:
        resumed = run(EWC(DiagonalFisher(), 0.0, epochs_per_task=100), ckpt_path=tmp_path / f"{batches}.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
