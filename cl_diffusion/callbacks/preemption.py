"""A fit that is asked to stop stops after a step, and leaves what it takes to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed
from typing_extensions import override

from cl_diffusion.callbacks.task_checkpoint import between_steps, checkpoint_folder, refuse_folders, write_checkpoint
from cl_diffusion.processes import world_size


class Preemption(Checkpoint):
    """On SIGTERM or SIGUSR1, writes ``last.ckpt`` after the running step, and ends the fit with ``128 + signal``.

    Resumed from there it is the uninterrupted fit. The handler only notes the signal; processes agree at the end of a
    batch, so that one of them having it is enough. Nothing is written between batches that accumulate, nor after an
    epoch's last one: then it stops at the next place where it can, the epoch's end at the latest.

    Lightning's own handler for SLURM saves within the signal, in the midst of a step, and that for SIGTERM saves
    nothing; both are replaced while training.

    Args:
        signals: that stop the fit.
        requeue: those of them that put a SLURM job back into the queue (``scontrol requeue``). SLURM itself requeues a
            job that is pre-empted (SIGTERM), and one that is cancelled (SIGTERM too) should not come back; at a time
            limit, ``#SBATCH --signal=USR1@300`` asks for SIGUSR1 beforehand.
        grace_seconds: after so long the process ends wherever it is, without another checkpoint: in a pass over a
            task's samples that takes longer than the cluster will wait, which is made again. None: it is waited for.
        dirpath: by default ``checkpoints`` in the run's folder.

    Raises:
        ValueError: a signal is unknown, ``requeue`` names one that is not among ``signals``, or ``grace_seconds`` is
            negative.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        requeue: Sequence[str] = ("SIGUSR1",),
        grace_seconds: float | None = None,
        dirpath: str | None = None,
    ) -> None:
        known = {each.name for each in signal.Signals} - {"SIGKILL", "SIGSTOP"}
        if unknown := sorted(set(signals) - known):
            raise ValueError(f"signals={list(signals)}: {unknown} cannot be handled; expected names such as 'SIGTERM'")
        if others := sorted(set(requeue) - set(signals)):
            raise ValueError(f"requeue={list(requeue)}: {others} are not among signals={list(signals)}")
        if grace_seconds is not None and grace_seconds < 0:
            raise ValueError(f"grace_seconds={grace_seconds!r}; expected a number >= 0, or None")
        self.signals = [signal.Signals[name] for name in signals]
        self.requeue = [signal.Signals[name] for name in requeue]
        self.grace_seconds = grace_seconds
        self.dirpath = dirpath
        self._received = 0
        self._step = 0
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._timer: threading.Timer | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_folders(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Now, as Lightning has installed its own handlers."""
        self._received = 0
        if world_size() > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")  # between hosts: the accelerator is not waited for
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("Preemption: signals are handled in a process's main thread, and this fit runs in another")
            return
        self._before = {each: signal.signal(each, self._note) for each in self.signals}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if between_steps(trainer, self._step):
            self._stop_if_asked(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs:  # there is nothing left to stop
            self._stop_if_asked(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self._received:
            return
        self._received = number
        if self.grace_seconds is not None:
            self._timer = threading.Timer(self.grace_seconds, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        number = self._agreed(trainer)
        if not number:
            return
        path = checkpoint_folder(trainer, self.dirpath) / "last.ckpt"
        write_checkpoint(trainer, path)
        name = signal.Signals(number).name
        rank_zero_info(f"{name}: stopped after step {trainer.global_step}; resume with --ckpt_path {path}")
        if trainer.is_global_zero:
            self._requeue(number)
        raise SIGTERMException(128 + number)

    def _agreed(self, trainer: Trainer) -> int:
        """The largest number of a signal that any process has received; 0 for none."""
        if world_size() == 1:
            return self._received
        received = torch.tensor([self._received])
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return int(received)

    def _give_up(self) -> None:
        """Of the timer's thread, whatever the main one does."""
        if int(os.environ.get("SLURM_PROCID", 0)) == 0:
            self._requeue(self._received)
        os._exit(128 + self._received)

    def _requeue(self, number: int) -> None:
        job = _slurm_job()
        if job is None or number not in self.requeue:
            return
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or error
            rank_zero_warn(f"the job {job} is not put back into the queue: scontrol requeue {job}: {said}")

    def _restore(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}


def _slurm_job() -> str | None:
    array, position = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{position}" if array and position else os.environ.get("SLURM_JOB_ID")
