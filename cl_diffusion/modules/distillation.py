"""A module that learns a task and is held, by its own earlier self, to what it knew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cl_diffusion.averaged_weights import averaged_weights
from cl_diffusion.stream import ReplayBatch, TaskStream

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object

Balance = Literal["balanced", "sum"]


class DistillationMixin(_Base):
    """For a LightningModule: the loss of the current task, and one on old tasks that a frozen teacher may set.

    *Balanced* (Masip et al. 2023, 2311.14028), with ``k`` tasks learned before: ``L_current / (k + 1) + (1 - 1/(k + 1))
    lambda L_old``. *Sum* (2509.23593): ``L_current + lambda L_old``.

    The teacher is a copy of ``student`` as the last task left it, with averaged weights where a ``WeightAveraging``
    callback keeps some. It is made when a task of a ``TaskStream`` ends,
    after callbacks have seen that end and before checkpoints are written (elsewhere: ``freeze_teacher()``), and stands
    outside the module's own parts: no optimizer, no Fisher and no gradient of several processes knows of it.
    Checkpoints hold it. Where all tasks are trained jointly none ends before the last, and there is no teacher.

    List the mixin before the LightningModule, offer ``student``, ``current_losses`` and ``old_losses``, and train on
    ``combined_loss(batch)``.
    """

    balance: Balance
    old_strength: float
    _teacher: nn.Module | None
    _taught: int
    _keeps_teacher: bool

    def set_up_distillation(
        self, balance: Balance = "balanced", old_strength: float = 1.0, teacher: bool = True
    ) -> None:
        """To be called in ``__init__``.

        Args:
            balance: of the two terms.
            old_strength: ``lambda``.
            teacher: False where ``old_losses`` needs none: no copy is kept.

        Raises:
            ValueError: ``balance`` is unknown, or ``old_strength`` is negative.
        """
        if balance not in get_args(Balance):
            raise ValueError(f"balance={balance!r}; expected one of {', '.join(map(repr, get_args(Balance)))}")
        if not 0 <= old_strength < float("inf"):
            raise ValueError(f"old_strength={old_strength!r}; expected a finite number >= 0")
        self.balance = balance
        self.old_strength = old_strength
        self._keeps_teacher = teacher
        self._keep(None, 0)

    @property
    @abstractmethod
    def student(self) -> nn.Module:
        """The part of the module whose copy is the teacher."""

    def both_losses(self, current: Any, replay: Any | None) -> tuple[Tensor, Tensor | None]:
        """``current_losses`` and ``old_losses``; to be overridden where both are had at once for less."""
        return self.current_losses(current, replay), self.old_losses(current, replay)

    @abstractmethod
    def current_losses(self, current: Any, replay: Any | None) -> Tensor:
        """``(B,)``, of the current task, given the two parts of a batch."""

    @abstractmethod
    def old_losses(self, current: Any, replay: Any | None) -> Tensor | None:
        """``(B',)`` on old tasks, given the two parts of a batch; None where there is nothing old yet."""

    @property
    def teacher(self) -> nn.Module | None:
        """Frozen, in evaluation mode; None while the first task is learned."""
        return self._teacher

    @property
    def tasks_before(self) -> int:
        """``k``: how many tasks were learned before the one that is trained."""
        return self._taught

    def freeze_teacher(self) -> None:
        """Take the student as it is for the teacher of the next task, with averaged weights where there are any."""
        with averaged_weights(self._trainer):
            teacher = _frozen_copy(self.student) if self._keeps_teacher else None
        self._keep(teacher, self._taught + 1)

    def combined_loss(self, batch: Any) -> Tensor:
        """The scalar to train on, of a batch with or without replay; its two terms are logged."""
        current, replay = batch if isinstance(batch, ReplayBatch) else (batch, None)
        losses, old = self.both_losses(current, replay)
        loss = losses.mean()
        if old is None:
            return loss
        self.log_dict({"current_loss": loss, "old_loss": old.mean()}, batch_size=1)
        share = 1 / (self.tasks_before + 1) if self.balance == "balanced" else 1.0
        rest = 1 - share if self.balance == "balanced" else 1.0
        return share * loss + rest * self.old_strength * old.mean()

    def on_train_start(self) -> None:
        """The teacher of a checkpoint, to where the student is; or the one that the checkpoint missed.

        Raises:
            ValueError: the student is sharded, and a teacher is to be kept.
        """
        super().on_train_start()
        if self._keeps_teacher and any(isinstance(part, FSDPModule) for part in self.student.modules()):
            raise ValueError(
                f"{type(self).__name__} keeps a teacher, a copy of its student, and of a sharded one there is no copy; "
                "use strategy='ddp', or a rehearsal without a teacher (NoiseRehearsal)"
            )
        self._catch_up()
        if self._teacher is not None:
            self._teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """A fit that is resumed at an epoch's start has begun before."""
        super().on_train_epoch_start()
        self._catch_up()

    def on_train_epoch_end(self) -> None:
        """Freeze the teacher where a task of a stream ends and another follows."""
        super().on_train_epoch_end()
        stream = _stream(self)
        if stream is not None and _is_followed(stream, self.trainer.current_epoch):
            self.freeze_teacher()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The teacher is no part of the state dict."""
        super().on_save_checkpoint(checkpoint)
        weights = None if self._teacher is None else dict(self._teacher.state_dict())
        checkpoint["teacher"] = {"tasks": self._taught, "weights": weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The teacher of the checkpoint, in the architecture of this module's student.

        Raises:
            ValueError: the checkpoint has none, or of another architecture.
        """
        super().on_load_checkpoint(checkpoint)
        found = checkpoint.get("teacher")
        if found is None or (self._keeps_teacher and found["tasks"] > 0 and found["weights"] is None):
            raise ValueError(
                f"the checkpoint holds no teacher, and {type(self).__name__} distils from one: it was written by "
                "another module, or one without a teacher; start without the checkpoint"
            )
        self._keep(None if found["weights"] is None else self._with_weights(found["weights"]), found["tasks"])

    def _catch_up(self) -> None:
        """Make up for a task's end that a checkpoint on its last batch has lost."""
        stream, epoch = _stream(self), self.trainer.current_epoch
        if stream is not None and self._taught < stream.task_at(epoch) and _is_followed(stream, epoch - 1):
            self.freeze_teacher()

    def _with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        teacher = _frozen_copy(self.student)
        mine = {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if differing := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            name = differing[0]
            raise ValueError(
                f"the checkpoint's teacher is of another architecture than this student: {name!r} is "
                f"{theirs.get(name, 'absent')} in it and {mine.get(name, 'absent')} here; build the module with the "
                "checkpoint's configuration"
            )
        teacher.load_state_dict(weights)
        return teacher

    def _keep(self, teacher: nn.Module | None, tasks: int) -> None:
        object.__setattr__(self, "_teacher", teacher)  # not among the module's parts
        self._taught = tasks


def _frozen_copy(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        return deepcopy(module).requires_grad_(False).eval()


def _is_followed(stream: TaskStream, epoch: int) -> bool:
    """Whether this epoch is a task's last, and another task comes after it."""
    if epoch < 0:
        return False
    following = stream.task_at(epoch + 1)
    return stream.task_at(epoch) != following and following < stream.num_tasks


def _stream(module: Any) -> TaskStream | None:
    trainer = module._trainer
    datamodule = None if trainer is None else getattr(trainer, "datamodule", None)
    return datamodule if isinstance(datamodule, TaskStream) else None
