"""The clock that says when a task starts and ends, for callbacks that care."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from cl_diffusion.arguments import is_whole
from cl_diffusion.linalg.shards import local
from cl_diffusion.phases import TRAINING, phase
from cl_diffusion.stream import TaskStream

_passing: ContextVar[bool] = ContextVar("passing", default=False)


@contextmanager
def passing() -> Iterator[None]:
    """A pass over samples between steps, in which no task ends."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)


class TaskCallback(Callback):
    """A callback with two more hooks: ``on_task_start`` and ``on_task_end``.

    A task ends in the last ``on_train_epoch_end`` of its last epoch, before checkpoints are written, so that they hold
    what callbacks keep of it. The clock, first of these that applies:

    1. the data module is a ``TaskStream``: it says which epoch belongs to which task;
    2. ``epochs_per_task=N``: every N epochs are a task, counted on from one ``fit`` to the next;
    3. every ``fit`` call is a task.

    ``end_task(trainer)`` ends the running task at once, whatever the clock, and without a stream the next batch is the
    next task's. A boundary that a checkpoint on the last batch of an epoch would lose is made up before training goes
    on. Tasks are counted from 0.

    Args:
        epochs_per_task: the length of a task, in a project whose data module knows nothing of tasks.

    Raises:
        ValueError: ``epochs_per_task`` is not positive, or is given where the data module already tells tasks apart.
        FloatingPointError: a task ends with weights that are not finite, of a callback that needs them so.
        TypeError: the data module has some of what makes a ``TaskStream``, and not all of it.
    """

    boundary_phase: str = TRAINING
    """As what the time of ``on_task_end`` is counted; see ``cl_diffusion.phases``."""

    def __init__(self, epochs_per_task: int | None = None) -> None:
        if epochs_per_task is not None and not is_whole(epochs_per_task, 1):
            raise ValueError(f"epochs_per_task={epochs_per_task!r}; expected a positive number of epochs, or None")
        self.epochs_per_task = epochs_per_task
        self._running: int | None = None
        self._ended = 0
        self._epochs = 0  # of the running task, that have ended
        self._epoch: int | None = None  # that has begun and not ended, as the Trainer numbers it
        self._restored = False
        self._broken_off = False
        self._trained = False

    @property
    def needs_finite_weights(self) -> bool:
        """Whether a task is refused to end whose weights are not finite: nothing could be remembered of it."""
        return False

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Before the first epoch of the task."""

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """After the last epoch of the task, before checkpoints are written."""

    def end_task(self, trainer: Trainer) -> None:
        """End the running task now; one that has just ended, by whatever clock, is not ended again.

        Does nothing within a pass over samples, which asks a ``training_step`` for its loss.

        Raises:
            RuntimeError: the trainer does not fit.
        """
        if _passing.get():
            return
        if self._running is not None:
            self._end(trainer, trainer.lightning_module)
        elif not trainer.training:
            raise RuntimeError("end_task was called while no task is running; call it during fit")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _refuse_half_a_stream(getattr(trainer, "datamodule", None))
        self._restored = self._trained = False
        if self.epochs_per_task is not None and task_stream(trainer) is not None:
            raise ValueError(
                f"epochs_per_task={self.epochs_per_task} is given to {type(self).__name__}, but the data module "
                f"{type(trainer.datamodule).__name__} already says which epoch belongs to which task; leave it out"  # type: ignore[attr-defined]
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True
        if not self._restored:
            self._epoch = None  # what an earlier fit left unfinished does not go on in this one
            if self._broken_off and self._running is not None:
                rank_zero_warn(
                    f"{type(self).__name__}: task {self._running + 1} was broken off in an earlier fit and goes on in "
                    "this one, whatever its data; give the next task a new callback with the last checkpoint's state, "
                    "or resume that fit (ckpt_path)"
                )
        self._broken_off = False
        self._catch_up(trainer, pl_module)  # a fit resumed within an epoch has no on_train_epoch_start

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(trainer, pl_module)
        self._epoch = trainer.current_epoch

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._running is None:  # ended within the epoch
            self._catch_up(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ended()
        if self._running is not None and self._is_last_epoch(trainer):
            self._end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every_fit_is_a_task = task_stream(trainer) is None and self.epochs_per_task is None
        if self._running is not None and (every_fit_is_a_task or self._missed_its_end(trainer)):
            self._end(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._running is not None and self._restored and not self._trained:
            rank_zero_warn(
                f"{type(self).__name__}: the checkpoint is from within task {self._running + 1}, and nothing is left "
                "to train, so that the task does not end; resume from a checkpoint of its end, or train longer"
            )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._broken_off = self._trained and trainer.state.fn == TrainerFn.FITTING

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "running_task": self._running,
            "tasks_ended": self._ended,
            "epochs_of_task": self._epochs,
            "epoch": self._epoch,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._running = state_dict["running_task"]
        self._ended = state_dict["tasks_ended"]
        self._epochs = state_dict["epochs_of_task"]
        self._epoch = state_dict["epoch"]
        self._restored = True

    def _epoch_ended(self) -> None:
        self._epochs, self._epoch = self._epochs + 1, None

    def _count_a_missed_epoch(self, trainer: Trainer) -> None:
        if self._epoch is not None and self._epoch != trainer.current_epoch:
            self._epoch_ended()

    def _is_last_epoch(self, trainer: Trainer) -> bool:
        epoch = trainer.current_epoch
        stream = task_stream(trainer)
        if stream is not None:
            return stream.task_at(epoch + 1) != stream.task_at(epoch)
        if self.epochs_per_task is not None:
            return self._epochs >= self.epochs_per_task
        enough = epoch + 1 >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
        stopping = trainer.should_stop and enough
        return stopping or epoch + 1 == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step

    def _missed_its_end(self, trainer: Trainer) -> bool:
        """Whether another task is trained by now: a checkpoint on an epoch's last batch skips the epoch's end."""
        stream = task_stream(trainer)
        if stream is not None:
            return stream.task_at(trainer.current_epoch) != self._running
        return self.epochs_per_task is not None and self._epochs >= self.epochs_per_task

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a task whose end was missed, and start the one that is trained now."""
        self._count_a_missed_epoch(trainer)
        if self._running is not None and self._missed_its_end(trainer):
            self._end(trainer, pl_module)
        stream = task_stream(trainer)
        task = self._ended if stream is None else stream.task_at(trainer.current_epoch)
        if self._running is None and (stream is None or self._ended <= task < stream.num_tasks):
            self._running, self._epochs = task, 0
            self.on_task_start(trainer, pl_module, task)

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._running is not None
        task, ended = self._running, self._ended
        if self.needs_finite_weights:
            _refuse_diverged(pl_module, task)
        self._running, self._ended = None, task + 1  # as a checkpoint that is written by the hook must hold it
        try:
            with phase(trainer, self.boundary_phase, task):
                self.on_task_end(trainer, pl_module, task)
        except BaseException:
            self._running, self._ended = task, ended
            raise


def _refuse_diverged(module: LightningModule, task: int) -> None:
    """Refuse to end a task whose weights nothing can be remembered or measured of."""
    for name, weight in module.named_parameters():
        if weight.requires_grad and not bool(local(weight).isfinite().all()):
            raise FloatingPointError(
                f"task {task + 1} ends with weights that are not finite, first of parameter {name!r}: training has "
                "diverged, or a batch held values that are not finite; lower the learning rate or the strength, and "
                "go on from a checkpoint before"
            )


def _refuse_half_a_stream(datamodule: Any) -> None:
    if not hasattr(datamodule, "task_at") or isinstance(datamodule, TaskStream):
        return
    wanted = ("num_tasks", "task_at", "importance_dataloader", "reference_dataloader", "evaluation_dataloader")
    missing = [name for name in wanted if not hasattr(datamodule, name)]
    raise TypeError(
        f"{type(datamodule).__name__} has `task_at`, and so would say which epoch belongs to which task, but lacks "
        f"{', '.join(missing)} of cl_diffusion.stream.TaskStream; add them, or drop `task_at` and use epochs_per_task"
    )


def task_stream(trainer: Trainer) -> TaskStream | None:
    """The trainer's data module where it is a ``TaskStream``, else None."""
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule if isinstance(datamodule, TaskStream) else None
