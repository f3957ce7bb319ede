"""Where a stream of tasks stands, how long it will take, and what has taken how long."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from cl_diffusion.callbacks.task import TaskCallback, task_stream
from cl_diffusion.callbacks.time_left import Growth, growth, time_left
from cl_diffusion.callbacks.timings_file import timings_path, write_timings
from cl_diffusion.phases import PhaseClock, spelled
from cl_diffusion.progress import show_status


class StreamProgress(TaskCallback):
    """On the progress bar ``task 2 of 5 · training · about 3 min left``, and ``timings.csv``: what took how long.

    Phases are ``training`` and what is done beside it: ``fisher`` (``importance`` of regularisers without one),
    ``replay`` (drawing images of old tasks), ``validation`` (Lightning's loop), ``evaluation``, ``audit``,
    ``checkpoint`` (those of this package); other callbacks add theirs by ``cl_diffusion.phases.phase``. Time is
    exclusive, so that a phase within another suspends it, and all add up to the wall time of the fit.

    The time left is of the whole stream, or of the fit where there is none, by the rule of ``time_left``: training at
    its present pace, for as many batches an epoch as the running task has; each other phase as the task before had it,
    and growing with the tasks as it has grown. How it grows is known once two tasks have ended: until then it says
    ``at least``. Where epochs or batches are without end it says nothing.

    ``timings.csv`` has the columns ``task,phase,seconds``: tasks from 1, and 0 for what comes before training
    (``setup``, ``reference classifier``). It lies in the run's folder: the logger's, without one the Trainer's
    ``default_root_dir``, which is the current folder where it was not given. The first process writes it as a task
    starts and as the fit ends, in one move; a ``fast_dev_run`` does not, nor does a fit that finds a file of other
    columns there, which it warns of and keeps. A resumed fit counts on from its checkpoint: what came after that is not
    in it. On a GPU, seconds are counted where the host waits for it. The sums are printed when the fit ends.

    Training is bit for bit the same with and without it.

    Args:
        epochs_per_task: the clock of a project whose data module knows nothing of tasks (see ``TaskCallback``); how
            many tasks there are is not said then.
    """

    def __init__(self, epochs_per_task: int | None = None) -> None:
        super().__init__(epochs_per_task)
        self.clock = PhaseClock()
        self._batches: dict[int, int] = {}
        self._task = 0
        self._ended_tasks: list[int] = []
        self._phases: dict[str, Growth] = {}  # of those
        self._validation = ExitStack()
        self._file: Path | None = None
        self._trained_epochs = 0
        self._trained_batches = 0  # of the epoch that has begun

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.clock.changed = lambda: show_status(trainer, self.status(trainer))
            self.clock.start(0, "setup")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file = timings_path(trainer)
        self._trained_epochs, self._trained_batches = trainer.current_epoch, 0
        super().on_train_start(trainer, pl_module)
        if self._running is not None:
            self._begin(self._running)

    @override
    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._write()
        self._begin(task)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained_epochs, self._trained_batches = trainer.current_epoch, 0
        super().on_train_epoch_start(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._trained_batches = batch_idx + 1
        self._batches[self._task] = self._batches.get(self._task, 0) + 1
        self.clock.tick()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained_epochs, self._trained_batches = trainer.current_epoch + 1, 0
        super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation.enter_context(self.clock.phase("validation"))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation.close()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.clock.changed = None
        show_status(trainer, "")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        self._stop()
        if summary := self.summary():
            rank_zero_info(f"time: {summary}")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._validation.close()
        self._stop()

    @override
    def state_dict(self) -> dict[str, Any]:
        timings = [(task, name, spent) for (task, name), spent in self.clock.seconds.items()]
        return {**super().state_dict(), "timings": timings, "batches": dict(self._batches)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.clock.load({(task, name): spent for task, name, spent in state_dict["timings"]})
        self._batches = dict(state_dict["batches"])

    def status(self, trainer: Trainer) -> str:
        """The task, the phase and the time left, as far as they are known."""
        if self.clock.current is None:
            return ""
        task, phase = self.clock.current
        stream = task_stream(trainer)
        of = "" if stream is None else f" of {stream.num_tasks}"
        left = self.time_left(trainer)
        about = "about" if len(self._ended_tasks) > 1 else "at least"
        said = "" if left is None else f"{about} {spelled(left, 1 if left < 3600 else 2)} left"
        if left is not None and left <= 0.5:  # which is spelled "0 s"
            said = "less than 1 s left" if about == "about" else ""
        return " · ".join(words for words in (f"task {task}{of}" if task else "", phase, said) if words)

    def time_left(self, trainer: Trainer) -> float | None:
        """Seconds, or None where they are not known; see ``cl_diffusion.callbacks.time_left``."""
        later, batches = self._later_tasks(trainer), self._batches_left(trainer)
        return time_left(self.clock.seconds, self._batches, self._phases, self._task, later, batches)

    def summary(self) -> str:
        """What each phase took over all tasks, the longest first: ``training 1 min 32 s, fisher 4 s``."""
        sums: dict[str, float] = {}
        for (_, name), spent in self.clock.seconds.items():
            sums[name] = sums.get(name, 0.0) + spent
        longest = sorted(sums.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {spelled(spent)}" for name, spent in longest if spent >= 0.05)

    def _begin(self, task: int) -> None:
        self._task = task + 1
        self._ended_tasks = [before for before in self._batches if before < self._task]
        self._phases = growth(self.clock.seconds, self._ended_tasks)
        self.clock.start(self._task)

    def _stop(self) -> None:
        self.clock.changed = None
        self.clock.stop()
        self._write()

    def _later_tasks(self, trainer: Trainer) -> int:
        stream = task_stream(trainer)
        if stream is not None:
            return stream.num_tasks - self._task
        if self.epochs_per_task is None:
            return 0
        ending = (self._epochs + self._epochs_left(trainer)) // self.epochs_per_task
        return max(0, int(ending) - 1) if math.isfinite(ending) else 0

    def _batches_left(self, trainer: Trainer) -> float:
        """Of the whole fit, were every epoch as long as the running one."""
        left = self._epochs_left(trainer) * trainer.num_training_batches - self._trained_batches
        if trainer.max_steps >= 0:
            left = min(left, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        return max(0.0, left)

    def _epochs_left(self, trainer: Trainer) -> float:
        """The running one among them."""
        epochs = trainer.max_epochs
        return math.inf if epochs is None or epochs < 0 else epochs - self._trained_epochs

    def _write(self) -> None:
        if self._file is not None and self._batches:
            write_timings(self._file, self.clock.seconds)
